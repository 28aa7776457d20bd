"""Rows of text, JSONL and CSV files, with everything that can be wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.cli.batch.rows import InputFile, Row
from modelscope_polylm.errors import InputError, OptionError

BOM = b"\xef\xbb\xbf"


def read(folder: Path, name: str, content: bytes, encoding: str = "utf-8") -> list[Row]:
    file = folder / name
    file.write_bytes(content)
    rows = list(InputFile.check(file, encoding).rows())
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    return rows


@pytest.mark.parametrize(
    ("name", "content", "values"),
    [
        ("a.txt", b"one\ntwo\r\nthree", ["one", "two", "three"]),
        ("a.txt", BOM + "北京\n é \n".encode(), ["北京", " é "]),
        ("a.txt", b"", []),
        ("a", "line\u2028separator\x85\x0c\n".encode(), ["line\u2028separator\x85\x0c"]),
        ("a.jsonl", b'{"text": "a"}\n"b"\n[1]\n', [{"text": "a"}, "b", [1]]),
        ("a.NDJSON", BOM + b'"\\u5317"\n', ["北"]),
        ("a.csv", BOM + b'text,id\n"a ""b"", c",1\n"two\nlines",2\n', None),
        ("a.tsv", b"text\tid\na,b\t1\n", [{"text": "a,b", "id": "1"}]),
        ("a.csv", b"text\n", []),
    ],
)
def test_values(tmp_path: Path, name: str, content: bytes, values: list[Any] | None) -> None:
    expected = values or [{"text": 'a "b", c', "id": "1"}, {"text": "two\nlines", "id": "2"}]
    assert [row.value for row in read(tmp_path, name, content)] == (expected if values is None else values)


@pytest.mark.parametrize(
    ("name", "content", "number", "reason"),
    [
        ("a.txt", b"a\n\nb\n", 2, "empty"),
        ("a.txt", b"a\n \t\nb\n", 2, "empty"),
        ("a.txt", b"a\nb \xff\n", 2, "not utf-8: invalid start byte at byte 2"),
        ("a.txt", "a\n北京".encode("gb18030"), 2, "not utf-8"),
        ("a.jsonl", b'"a"\n{"b\n"c"\n', 2, "not JSON"),
        ("a.jsonl", b'"a"\n' + b"[" * 100_000 + b"\n", 2, "nested too deeply"),
        ("a.jsonl", b"1\n" + b"9" * 5000 + b"\n", 2, "not JSON"),
        ("a.csv", b"text,id\na,1\nb\n", 2, "has 1 fields, but the header has 2"),
        ("a.csv", b"text,id\na,1\n\nc,3\n", 2, "empty"),
        ("a.csv", b"text,id\na,1\n\xff,2\nc,3\n", 2, "not utf-8"),
        ("a.csv", b'text,id\na,1\n"b"b,2\nc,3\n', 2, "not valid CSV"),
        ("a.csv", b'text,id\na,1\n"b,2\nc,3\n', 2, "ends at line 4 is not valid CSV"),
    ],
)
def test_bad_rows_stay_alone(tmp_path: Path, name: str, content: bytes, number: int, reason: str) -> None:
    rows = read(tmp_path, name, content)
    assert [row.number for row in rows if row.error is not None] == [number]
    assert reason in str(rows[number - 1].error)


def test_encodings(tmp_path: Path) -> None:
    assert read(tmp_path, "a.txt", "北京\n".encode("gb18030"), "gb18030")[0].value == "北京"
    assert read(tmp_path, "a.csv", "text\né\n".encode("latin-1"), "latin-1")[0].value == {"text": "é"}


def test_long_lines(tmp_path: Path) -> None:
    text = "word " * 2_000_000
    assert read(tmp_path, "a.txt", f"a\n{text}\nb".encode())[1].value == text
    assert read(tmp_path, "a.csv", f"text\n{text}\nb\n".encode())[0].value == {"text": text}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp037", "klingon", "rot13", "utf\0"])
def test_refused_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    with pytest.raises(OptionError, match="encoding="):
        InputFile.check(tmp_path / "a.txt", encoding)


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x00", "北京\n".encode("utf-16"), b"a\nb\0\n"])
def test_binary_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match="binary or UTF-16"):
        InputFile.check(tmp_path / "a.txt")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        InputFile.check(tmp_path / "a.txt")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="no ordinary file"):
            InputFile.check(path)


def test_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for content, columns in ((BOM + b"id,text\n", ["id", "text"]), (b'"a b"\n', ["a b"])):
        file.write_bytes(content)
        assert InputFile.check(file).columns() == columns
    for content in (b"", b"\n", b",\n", b'"\n'):
        file.write_bytes(content)
        with pytest.raises(InputError, match="no header"):
            InputFile.check(file).columns()
