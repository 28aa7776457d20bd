"""What an input file is, and JSON as batches read it.

A file's content decides together with its name what it is, and where they leave a doubt, the user does. JSON is read
strictly, and without loss of numbers that no float holds.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import gzip
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modelscope_polylm.errors import InputError, OptionError, suggestion
from modelscope_polylm.inputs import is_conversation
from modelscope_polylm.terminal.output import json_line

TEXT, JSONL, JSON, CSV, PARQUET, XLSX = FORMATS = ("text", "jsonl", "json", "csv", "parquet", "xlsx")
TABLES = (CSV, PARQUET, XLSX)
FORMATS_BY_SUFFIX = {".jsonl": JSONL, ".ndjson": JSONL, ".json": JSON, ".csv": CSV, ".tsv": CSV}
DELIMITERS = (",", ";", "\t", "|")
TEXT_COLUMN = "text"
COLUMN_NAME = re.compile(r"[a-z_][a-z0-9_]*")
SAMPLE_LINES = 50
SAMPLE_BYTES = 1 << 16
GZIP_START, ZIP_START, PARQUET_START = b"\x1f\x8b", b"PK\x03\x04", b"PAR1"
NO_TEXT = "binary or UTF-16, not text: convert it to UTF-8 first"
REFUSED_STARTS = {
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as .xlsx or CSV",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"BZh": "compressed by bzip2: decompress it, or use gzip",
    b"\xfd7zXZ": "compressed by xz: decompress it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it, or use gzip",
    codecs.BOM_UTF16_LE: NO_TEXT,
    codecs.BOM_UTF16_BE: NO_TEXT,
}
"""Files that are not read, by their first bytes, and what to do."""
SPACES = re.compile(r"\s*")


@dataclass(frozen=True)
class InputFormat:
    """How the rows of a file are written.

    Attributes:
        name: one of FORMATS. 'text': a text a line; 'jsonl': a JSON value a line; 'json': values over any number of
            lines, such as one array; 'csv', 'parquet', 'xlsx': a table with a header.
        delimiter: between the fields of a CSV file.
    """

    name: str
    delimiter: str = ","


def find_format(
    path: Path,
    encoding: str = "utf-8",
    format: str | None = None,
    delimiter: str | None = None,
    columns: Sequence[str] = (TEXT_COLUMN,),
) -> InputFormat:
    """The format of a file, compressed by gzip or not.

    Args:
        path: the file.
        encoding: of its text.
        format: one of FORMATS, if the user names it.
        delimiter: of a CSV file, if the user names it; 'tab' is a tab.
        columns: those that are needed; a header that names one of them tells a CSV file from lines of text.

    Raises:
        InputError: it cannot be read, is binary, or can be read in two ways.
        OptionError: an unknown format or delimiter.
    """
    if format is not None and format not in FORMATS:
        raise OptionError(f"format={format!r} is unknown: {suggestion(format, FORMATS)}")
    given = _checked_delimiter(delimiter)
    if given is not None and format not in (None, CSV):
        raise OptionError(f"delimiter={delimiter!r} is for CSV, not for {format}: leave it out.")
    name = format or (_binary_format(path) if given is None else CSV)
    if name in (PARQUET, XLSX):
        return InputFormat(name)
    sample = _sample(path, encoding)
    name = name or _text_format(path, encoding, sample, columns)
    return InputFormat(name, given or _sniffed_delimiter(path, sample, columns)) if name == CSV else InputFormat(name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, decompressed if it is a .gz file.

    Raises:
        InputError: it cannot be read, also within the block.
    """
    try:
        with path.open("rb") as raw:
            is_compressed = raw.peek(len(GZIP_START)).startswith(GZIP_START)
            with gzip.GzipFile(fileobj=raw) if is_compressed else raw as file:
                yield file  # type: ignore[misc]  # a GzipFile has all methods that are used
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut off: {error}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class LargeNumber:
    """A number such as 1e400, which no float holds."""

    literal: str

    def __str__(self) -> str:
        return self.literal


def read_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, which NaN is not, either; a key that is there twice; nested too deeply.
    """
    try:
        return _decoder().decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_documents(text: str) -> list[Any]:
    """The rows of a file of JSON values over any number of lines.

    A single array holds the rows, unless it is one conversation; otherwise each value is a row.

    Raises:
        ValueError: as `read_json`.
    """
    values: list[Any] = []
    text, end = text.removeprefix("\ufeff").strip(), 0
    try:
        while end < len(text):
            value, end = _decoder().raw_decode(text, end)
            values.append(value)
            end = SPACES.match(text, end).end()  # type: ignore[union-attr]  # it matches everywhere
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    is_array = len(values) == 1 and isinstance(values[0], list) and not is_conversation(values[0])
    return values[0] if is_array else values


def text_of(value: Any) -> str:
    """A value as a part of a text: texts as they are, what JSON has as JSON, anything else as Python shows it."""
    if isinstance(value, str):
        return value
    is_json = value is None or isinstance(value, (bool, int, float, list, dict))
    return json_line(value).rstrip("\n") if is_json else str(value)


def _checked_delimiter(given: str | None) -> str | None:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(given or "", given)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise OptionError(f"delimiter={given!r} must be one character, such as ; or tab.")
    return delimiter


def _binary_format(path: Path) -> str | None:
    """'parquet' or 'xlsx'; None for text."""
    with opened(path) as file:
        start = file.read(SAMPLE_BYTES)
    if start.startswith(PARQUET_START):
        return PARQUET
    if start.startswith(ZIP_START):
        if zipfile.is_zipfile(path) and any(name.startswith("xl/") for name in zipfile.ZipFile(path).namelist()):
            return XLSX
        raise InputError(f"{path} is a ZIP archive: unpack it, and name the file in it.")
    for refused, advice in REFUSED_STARTS.items():
        if start.startswith(refused):
            raise InputError(f"{path} is {advice}.")
    if b"\0" in start:
        raise InputError(f"{path} is {NO_TEXT}.")
    return None


@dataclass(frozen=True)
class _Sample:
    """The first lines of a file that are not empty; the first one is whole, however long it is."""

    lines: list[str]
    is_whole_file: bool


def _sample(path: Path, encoding: str) -> _Sample:
    lines: list[str] = []
    size = 0
    with opened(path) as file:
        for line in file:
            text = line.removeprefix(codecs.BOM_UTF8).decode(encoding, "replace").strip("\r\n")
            if text.strip():
                if lines and (len(lines) == SAMPLE_LINES or size + len(line) > SAMPLE_BYTES):
                    return _Sample(lines, is_whole_file=False)
                lines.append(text)
                size += len(line)
    return _Sample(lines, is_whole_file=True)


def _text_format(path: Path, encoding: str, sample: _Sample, columns: Sequence[str]) -> str:
    named = FORMATS_BY_SUFFIX.get(_suffix(path), TEXT)
    if not sample.lines:
        return named
    found = _json_format(path, encoding, sample, named)
    if found is not None:
        return found
    return CSV if named == TEXT and _is_csv(path, sample, columns) else named


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _json_format(path: Path, encoding: str, sample: _Sample, named: str) -> str | None:
    """'jsonl' or 'json'; None for a file that is neither named as JSON nor looks like it."""
    values = [_value(line) for line in sample.lines]
    if named == TEXT and all(isinstance(value, str) for value in values):
        raise InputError(_doubt(path, "lines of JSON strings", JSONL))
    name_or_none = named if named in (JSON, JSONL) else None
    if sample.lines[0].lstrip()[0] not in "{[":
        return name_or_none
    if len(values) == 1 and sample.is_whole_file and values[0] is not None:
        return JSON
    whole = [isinstance(value, (dict, list)) for value in values]
    if all(whole):
        return JSONL
    if _is_json(path, encoding):
        return JSON
    if name_or_none is None and whole[0]:
        raise InputError(
            _doubt(path, f"JSON lines, but this line is not JSON: {sample.lines[whole.index(False)]:.60}", JSONL)
        )
    return name_or_none


def _value(line: str) -> Any:
    """The line's JSON value; None if it is no JSON, or null."""
    try:
        return read_json(line)
    except ValueError:
        return None


def _is_json(path: Path, encoding: str) -> bool:
    with opened(path) as file:
        content = file.read()
    try:
        return bool(read_documents(content.decode(encoding)))
    except ValueError:
        return False


def _is_csv(path: Path, sample: _Sample, columns: Sequence[str]) -> bool:
    """Whether a file that is not named as CSV is CSV."""
    for delimiter in DELIMITERS:
        names, *rows = (_fields(line, delimiter) for line in sample.lines)
        is_header = bool(set(names) & set(columns)) and (len(names) > 1 or TEXT_COLUMN not in columns)
        if is_header:
            return True
        has_columns = len(names) > 1 and all(len(fields) == len(names) for fields in rows)
        if rows and (names == [TEXT_COLUMN] or (has_columns and all(map(COLUMN_NAME.fullmatch, names)))):
            raise InputError(_doubt(path, f"CSV with the header {sample.lines[0]:.60}", CSV))
    return False


def _sniffed_delimiter(path: Path, sample: _Sample, columns: Sequence[str]) -> str:
    """The delimiter that finds the needed columns in the header of a CSV file, or else most columns."""
    usual = ("\t", *DELIMITERS) if _suffix(path) == ".tsv" else DELIMITERS
    headers = {delimiter: _fields(sample.lines[0], delimiter) if sample.lines else [] for delimiter in usual}
    return max(headers, key=lambda each: (len(set(headers[each]) & set(columns)), len(headers[each])))


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except (csv.Error, StopIteration):
        return []


def _doubt(path: Path, likeness: str, name: str) -> str:
    return f"{path} looks like {likeness}: pass --format {name}, or --format text to take each line as a prompt."


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_float=_number, parse_constant=_refuse_constant, object_pairs_hook=_object)


def _number(literal: str) -> float | LargeNumber:
    value = float(literal)
    return value if math.isfinite(value) else LargeNumber(literal)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value
