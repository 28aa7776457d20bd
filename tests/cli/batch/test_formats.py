"""What an input file is: by its content and its name, and by the user where these leave a doubt."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from modelscope_polylm.cli.batch.formats import find_format
from modelscope_polylm.errors import InputError, OptionError

LINES = b'{"text": "a"}\n{"text": "b"}\n'
ARRAY = b'[{"text": "a"}, {"text": "b"}]'
PRETTY = b'{\n  "text": "a"\n}\n'


def found(folder: Path, name: str, content: bytes, **known: object) -> str:
    file = folder / name
    file.write_bytes(content)
    return find_format(file, **known).name  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a", "a.csv"])
@pytest.mark.parametrize(
    ("content", "format"),
    [
        (LINES, "jsonl"),
        (b"\xef\xbb\xbf" + LINES, "jsonl"),
        (b"\n\n" + LINES.replace(b"\n", b"\r\n"), "jsonl"),
        (ARRAY, "json"),
        (ARRAY.replace(b", {", b",\n {"), "json"),
        (PRETTY, "json"),
        (PRETTY * 2, "json"),
        (b"[\n" + PRETTY + b"]", "json"),
        (b'[{"text": "' + b"a" * 100_000 + b'"}]', "json"),
    ],
)
def test_json_is_known_by_its_content(tmp_path: Path, name: str, content: bytes, format: str) -> None:
    assert found(tmp_path, name, content) == format
    assert found(tmp_path, f"{name}.gz", gzip.compress(content)) == format


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.txt", b"Hello, world\nHow are you, dear?\n", "text"),
        ("a.txt", b"[INST] Hello\n{name} is here\n", "text"),
        ("a.txt", b"one\n", "text"),
        ("a.txt", b"", "text"),
        ("a.jsonl", b"", "jsonl"),
        ("a.jsonl", b'"one"\n"two"\n', "jsonl"),
        ("a.jsonl", b'{"text": \n{"text": "b"}\n', "jsonl"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "jsonl"),
        ("a.json", b"not JSON", "json"),
        ("a.txt", b"id,text\n1,Hello\n", "csv"),
        ("a.txt", b"id;text\n1;Hello\n", "csv"),
        ("a.csv", b"Hello", "csv"),
        ("a.TSV", b"text\n", "csv"),
    ],
)
def test_names_decide_where_the_content_says_nothing_else(
    tmp_path: Path, name: str, content: bytes, format: str
) -> None:
    assert found(tmp_path, name, content) == format


@pytest.mark.parametrize(
    ("content", "likeness"),
    [
        (b'{"text": "a"}\nHello\n', "JSON lines, but this line is not JSON: Hello"),
        (b'"Hello"\n"World"\n', "lines of JSON strings"),
        (b"question,answer\nRome,Italy\n", "CSV with the header question,answer"),
        (b"text\nHello\n", "CSV with the header text"),
    ],
)
def test_doubts_are_told(tmp_path: Path, content: bytes, likeness: str) -> None:
    with pytest.raises(InputError, match="or --format text to take each line as a prompt") as caught:
        found(tmp_path, "a.txt", content)
    assert f"looks like {likeness}: pass --format" in str(caught.value)
    for format in ("text", "jsonl", "csv"):
        assert found(tmp_path, "a.txt", content, format=format) == format


def test_needed_columns_tell_a_table_from_text(tmp_path: Path) -> None:
    content = b"question,answer\nRome,Italy\n"
    assert found(tmp_path, "a.txt", content, columns=["question"]) == "csv"
    assert found(tmp_path, "a.txt", b"body\nRome\n", columns=["body"]) == "csv"


@pytest.mark.parametrize(
    ("name", "header", "columns", "delimiter"),
    [
        ("a.csv", "id,text", ["text"], ","),
        ("a.csv", "id;text", ["text"], ";"),
        ("a.csv", "id\ttext", ["text"], "\t"),
        ("a.csv", "id|text", ["text"], "|"),
        ("a.csv", "a, b, c;text", ["text"], ";"),
        ("a.csv", '"a;b;c",text', ["text"], ","),
        ("a.csv", "text", ["text"], ","),
        ("a.tsv", "a\tb,c", ["text"], "\t"),
        ("a.csv.gz", "id;text", ["text"], ";"),
    ],
)
def test_delimiters(tmp_path: Path, name: str, header: str, columns: list[str], delimiter: str) -> None:
    file, content = tmp_path / name, f"{header}\n1\n".encode()
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert find_format(file, columns=columns).delimiter == delimiter
    for given, taken in ((";", ";"), ("tab", "\t"), ("\\t", "\t"), ("^", "^")):
        assert find_format(file, delimiter=given).delimiter == taken


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"format": "jsnl"}, "did you mean jsonl"),
        ({"format": "yaml"}, "choose one of text, jsonl"),
        ({"delimiter": ",,"}, "must be one character"),
        ({"delimiter": ""}, "must be one character"),
        ({"delimiter": '"'}, "must be one character"),
        ({"delimiter": ",", "format": "jsonl"}, "is for CSV, not for jsonl"),
    ],
)
def test_wrong_formats(tmp_path: Path, known: dict[str, str], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        found(tmp_path, "a.txt", b"text\n", **known)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"\x7fELF\x02\x00", "binary or UTF-16"),
        ("北京\n".encode("utf-16"), "binary or UTF-16"),
        ("北京".encode("utf-16"), "binary or UTF-16"),
        (b"a\nb\0\n", "binary or UTF-16"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as .xlsx or CSV"),
        (b"ARROW1\0\0", "write it as Parquet"),
        (b"BZh91AY&SY", "decompress it"),
        (b"\xfd7zXZ\0", "decompress it"),
        (b"\x28\xb5\x2f\xfd", "decompress it"),
        (b"PK\x03\x04 not really", "ZIP archive: unpack it"),
        (gzip.compress(b"a\n" * 100_000, mtime=0)[:50], "damaged or cut off"),
        (b"\x1f\x8b", "damaged or cut off"),
    ],
)
def test_binary_files(tmp_path: Path, content: bytes, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        found(tmp_path, "a.txt", content)


def test_archives_are_not_workbooks(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("in.jsonl", "{}")
    with pytest.raises(InputError, match="ZIP archive"):
        find_format(tmp_path / "a.xlsx")
