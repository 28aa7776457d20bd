"""Rows of files of all formats, with everything that can be wrong in them."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow.parquet
import pytest

from modelscope_polylm.cli.batch.formats import text_of
from modelscope_polylm.cli.batch.rows import BatchInput, Row
from modelscope_polylm.errors import DependencyError, InputError, OptionError

BOM = b"\xef\xbb\xbf"


def read(folder: Path, name: str, content: bytes, encoding: str = "utf-8", **known: Any) -> list[Row]:
    file = folder / name
    file.write_bytes(content)
    rows = list(BatchInput.find(file, encoding, **known).rows())
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
        ("a.txt", b"one\n\n \n\r\n", ["one"]),
        ("a.jsonl", b'"one"\n\n\n', ["one"]),
        ("a.csv", b"text,id\na,1\n\n,\n", [{"text": "a", "id": "1"}]),
        ("a.csv", b'text;id\r\n"two\r\nlines";1\r\n', [{"text": "two\nlines", "id": "1"}]),
        ("a.tsv", b"text,id\na,1\n", [{"text": "a", "id": "1"}]),
        ("a.json", b'[{"text": "a"}, "b"]', [{"text": "a"}, "b"]),
        ("a.json", BOM + b'{\n"text": "a\\r\\nb"\n}\n', [{"text": "a\r\nb"}]),
        ("a.json", b'{\n"text": "a"}\n{\n"text": "b"}', [{"text": "a"}, {"text": "b"}]),
        ("a.json", b'[\n{"role": "user", "content": "a"}]', [[{"role": "user", "content": "a"}]]),
        ("a.json", b"[]", []),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0), [{"text": "a"}]),
        ("a.jsonl", gzip.compress(b'{"text": "a"}\n', mtime=0), [{"text": "a"}]),
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
        ("a.csv", b"text,id\na,1\n,\nc,3\n", 2, "empty"),
        ("a.jsonl", b'"a"\n{"id": NaN}\n"c"\n', 2, "NaN is no JSON value"),
        ("a.jsonl", b'"a"\n{"text": "a", "text": "b"}\n"c"\n', 2, "the key 'text' is there twice"),
        ("a.csv", b"text,id\na,1\n\xff,2\nc,3\n", 2, "not utf-8"),
        ("a.csv", b'text,id\na,1\n"b"b,2\nc,3\n', 2, "not valid CSV"),
        ("a.csv", b'text,id\na,1\n"b,2\nc,3\n', 2, "ends at line 4 is not valid CSV"),
    ],
)
def test_bad_rows_stay_alone(tmp_path: Path, name: str, content: bytes, number: int, reason: str) -> None:
    rows = read(tmp_path, name, content)
    assert [row.number for row in rows if row.error is not None] == [number]
    assert reason in str(rows[number - 1].error)


def test_large_numbers_keep_their_text(tmp_path: Path) -> None:
    row = read(tmp_path, "a.jsonl", b'{"id": 1e400, "n": [1e400, 0.1, 12345678901234567890]}\n')[0]
    assert str(row.value["id"]) == "1e400"
    assert row.value["n"][1:] == [0.1, 12345678901234567890]
    assert text_of(row.value["id"]) == "1e400"


def test_parquet(tmp_path: Path) -> None:
    values = [{"id": number, "text": f"text {number}", "messages": None} for number in range(2000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    source = BatchInput.find(tmp_path / "a.parquet")
    assert source.columns() == ["id", "text", "messages"]
    assert [row.value for row in source.rows()] == values
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is no complete Parquet file"):
        list(BatchInput.find(tmp_path / "cut.parquet").rows())


def workbook(file: Path, *sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for cells in sheets:
        sheet = book.create_sheet()
        for row in cells:
            sheet.append(row)
    book.save(file)
    return file


def test_workbooks(tmp_path: Path) -> None:
    cells = [["id", "text"], [1, "a"], [2, None], [None, None], [4, "d", "e"], [], [None, None]]
    source = BatchInput.find(workbook(tmp_path / "a.xlsx", cells, []))
    assert source.columns() == ["id", "text"]
    rows = list(source.rows())
    assert [row.value for row in rows] == [{"id": 1, "text": "a"}, {"id": 2, "text": None}, None, None]
    assert [row.error for row in rows[2:]] == ["The line is empty.", "The row has 3 fields, but the header has 2."]


def test_workbooks_with_several_sheets_or_none(tmp_path: Path) -> None:
    source = BatchInput.find(workbook(tmp_path / "a.xlsx", [["text"], ["a"]], [["text"], ["b"]]))
    with pytest.raises(InputError, match="has several sheets"):
        source.columns()
    with pytest.raises(InputError, match="no header"):
        BatchInput.find(workbook(tmp_path / "b.xlsx", [])).columns()


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("openpyxl", "a.xlsx")])
def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    workbook(tmp_path / "a.xlsx", [["text"], ["a"]])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}]), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=f"needs {package}: pip install {package}, or"):
        BatchInput.find(tmp_path / name).columns()


def test_files_that_are_no_json(tmp_path: Path) -> None:
    for content in (b'[{"text": "a"}', b"Hello", b'{"text": NaN}'):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match="is not JSON: "):
            list(BatchInput.find(tmp_path / "a.json").rows())


def test_damaged_compression_in_the_middle(tmp_path: Path) -> None:
    content = gzip.compress(b"".join(b"line %d\n" % number for number in range(100_000)))
    (tmp_path / "a.txt.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        list(BatchInput.find(tmp_path / "a.txt.gz").rows())


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
        BatchInput.find(tmp_path / "a.txt", encoding)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        BatchInput.find(tmp_path / "a.txt")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="no ordinary file"):
            BatchInput.find(path)


def test_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for content, columns in ((BOM + b"id,text\n", ["id", "text"]), (b'"a b"\n', ["a b"])):
        file.write_bytes(content)
        assert BatchInput.find(file).columns() == columns
    for content in (b"", b"\n", b",\n", b'"\n'):
        file.write_bytes(content)
        with pytest.raises(InputError, match="no header"):
            BatchInput.find(file).columns()


@pytest.mark.parametrize("header", [b"id,text,id", b"text,,", b'"text",text'])
def test_columns_with_the_same_name(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(header + b"\n1,2,3\n")
    with pytest.raises(InputError, match="has 2 columns with the name"):
        BatchInput.find(tmp_path / "a.csv").columns()
