"""Data files of every kind, whole and broken."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from modelscope_polylm.errors import InputError
from modelscope_polylm.training.rows import read_rows
from tests.training.published import write_json, write_lines

ROWS = [{"a": 1}, {"a": "é]\u2028}{"}, {"a": [None, {"b": ","}]}]


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_arrays(tmp_path: Path, name: str, indent: int | None) -> None:
    assert list(read_rows(write_json(tmp_path / name, ROWS, indent))) == ROWS


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "ROWS.JSONL"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    assert list(read_rows(write_lines(tmp_path / name, ROWS))) == ROWS


def test_a_byte_order_mark_empty_lines_and_other_line_ends(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes("\ufeff\r\n{}\r\n\n[1]\r\n".encode())
    assert list(read_rows(tmp_path / "rows.jsonl")) == [{}, [1]]


def test_a_line_that_is_no_json_comes_as_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    assert list(read_rows(tmp_path / "rows.jsonl")) == [{"a": 1}, '{"a": ']


def test_csv_and_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,lang\n"two\nlines, quoted",de\n', encoding="utf-8")
    assert list(read_rows(tmp_path / "rows.csv")) == [{"text": "two\nlines, quoted", "lang": "de"}]
    (tmp_path / "rows.txt").write_text("\none\r\nmore\n\n \ntwo", encoding="utf-8", newline="")
    assert list(read_rows(tmp_path / "rows.txt")) == [{"text": "one\nmore"}, {"text": "two"}]


def test_parquet(tmp_path: Path) -> None:
    import datasets

    rows = [{"text": "a"}, {"text": None}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    assert list(read_rows(tmp_path / "rows.parquet")) == rows


def test_folders_in_the_order_of_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [2])
    write_lines(tmp_path / "a.jsonl.gz", [1])
    (tmp_path / "README.md").write_text("no data")
    assert list(read_rows(tmp_path)) == [1, 2]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_truncated_gzip_file(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(json.dumps([{"n": number} for number in range(1000)]).encode())
    (tmp_path / f"{name}.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        list(read_rows(tmp_path / f"{name}.gz"))


@pytest.mark.parametrize("content", ["[", "[{}", '[{"a": 1}, {"a"', "[{}, x]"])
def test_a_broken_array(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(InputError, match="damaged or cut off"):
        list(read_rows(tmp_path / "rows.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"a": "\xff"}', "not UTF-8"),
        ("rows.jsonl.gz", b"plain", "damaged"),
        ("rows.parquet", b"PAR1 cut off", "no complete parquet file"),
        ("rows.docx", b"", "unknown kind"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))


def test_paths_without_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="has no data file"):
        list(read_rows(tmp_path))


def test_memory_does_not_grow_with_an_array(tmp_path: Path) -> None:
    file = write_json(tmp_path / "rows.json", [{"text": "x" * 1000}] * 20_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(file)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # the file has 20 MB
    finally:
        tracemalloc.stop()
