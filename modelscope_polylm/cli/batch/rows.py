"""Read the rows of a file one at a time. What is wrong with a row stays with that row."""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_polylm.cli.batch.formats import (
    CSV,
    JSON,
    JSONL,
    PARQUET,
    TABLES,
    TEXT,
    TEXT_COLUMN,
    XLSX,
    InputFormat,
    find_format,
    opened,
    read_documents,
    read_json,
)
from modelscope_polylm.errors import DependencyError, InputError, OptionError

LARGEST_FIELD = 1 << 30  # csv's own limit of 131,072 characters is for interactive use
PARQUET_ROWS = 1024
"""Rows of a Parquet file that are in memory at once."""
EMPTY = "The line is empty."


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: counted from 1; the header of a table is not counted.
        value: a text, or what JSON or the columns of a table hold.
        error: why there is no value.
    """

    number: int
    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class BatchInput:
    """A file of rows.

    Attributes:
        path: the file.
        format: how its rows are written.
        encoding: of text, JSON and CSV: a superset of ASCII.
    """

    path: Path
    format: InputFormat
    encoding: str = "utf-8"

    @classmethod
    def find(cls, path: Path, encoding: str = "utf-8", **known: Any) -> BatchInput:
        """Take a file, and find out what it is.

        Args:
            path, encoding: as the attributes.
            known: what the caller knows of the format, as `find_format` takes it.

        Raises:
            InputError: it cannot be read twice, is binary, or can be read in two ways.
            OptionError: an encoding that is unknown, or in which a line cannot be told from its bytes; a wrong format.
        """
        try:
            ascii_stays = codecs.lookup(encoding) and "a\n".encode(encoding) == b"a\n"
        except (LookupError, ValueError):
            ascii_stays = False
        if not ascii_stays:
            raise OptionError(f"encoding={encoding!r}: use utf-8, gb18030, latin-1 or another superset of ASCII.")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no ordinary file: a batch reads its input twice.")
        return cls(path, find_format(path, encoding, **known), encoding)

    def rows(self) -> Iterator[Row]:
        """All rows, without empty ones at the end.

        Raises:
            InputError: the file cannot be read, is damaged, or is not of its format.
        """
        readers: dict[str, Callable[[], Iterable[Row]]] = {
            TEXT: self._lines,
            JSONL: self._lines,
            JSON: lambda: (Row(number, value) for number, value in enumerate(self._documents, start=1)),
            CSV: lambda: _table_rows(self._csv_records()),
            PARQUET: lambda: _parquet_rows(self.path),
            XLSX: lambda: _table_rows(_xlsx_records(self.path)),
        }
        yield from _without_empty_end(readers[self.format.name]())

    def columns(self) -> list[str] | None:
        """The names of a table's columns, 'text' alone for lines of text, None for JSON.

        Raises:
            InputError: a table has none, or two with the same name.
        """
        if self.format.name not in TABLES:
            return [TEXT_COLUMN] if self.format.name == TEXT else None
        if self.format.name == PARQUET:
            names = list(_parquet_file(self.path).schema_arrow.names)
        else:
            names = _header(self._csv_records() if self.format.name == CSV else _xlsx_records(self.path))
        if not any(names):
            raise InputError(f"{self.path} has no header: the first line of a table names its columns.")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{self.path} has {names.count(name)} columns with the name {name!r}: rename them.")
        return names

    def _lines(self) -> Iterator[Row]:
        with opened(self.path) as file:
            for number, line in enumerate(file, start=1):
                yield self._line(number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)

    def _line(self, number: int, line: bytes) -> Row:
        try:
            text = line.rstrip(b"\r\n").decode(self.encoding)
        except UnicodeDecodeError as error:
            return Row(number, error=f"The line is not {self.encoding}: {error.reason} at byte {error.start}.")
        if not text.strip():
            return Row(number, error=EMPTY)
        if self.format.name == TEXT:
            return Row(number, text)
        try:
            return Row(number, read_json(text))
        except ValueError as error:
            return Row(number, error=f"The line is not JSON: {error}.")

    @functools.cached_property
    def _documents(self) -> list[Any]:
        with opened(self.path) as file:
            content = file.read()
        try:
            return read_documents(content.decode(self.encoding))
        except ValueError as error:
            raise InputError(f"{self.path} is not JSON: {error}.") from error

    def _csv_records(self) -> Iterator[list[str] | str]:
        """The fields of each record, the header first, or what is wrong with the record."""
        encoding = "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding
        csv.field_size_limit(LARGEST_FIELD)
        with opened(self.path) as file:
            text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")
            reader = csv.reader(text, delimiter=self.format.delimiter, strict=True)
            while True:
                try:
                    fields = [field.replace("\r\n", "\n") for field in next(reader)]
                except StopIteration:
                    return
                except csv.Error as error:
                    yield f"The row that ends at line {reader.line_num} is not valid CSV: {error}."
                    continue
                yield fields if _is_unicode("".join(fields)) else f"The row is not {self.encoding}."


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(records: Iterable[Sequence[Any] | str]) -> list[str]:
    names = next(iter(records), [])
    return [] if isinstance(names, str) else ["" if name is None else str(name) for name in names]


def _table_rows(records: Iterable[Sequence[Any] | str]) -> Iterator[Row]:
    """The rows of a table whose first record is its header."""
    records = iter(records)
    names = _header(records)
    for number, record in enumerate(records, start=1):
        if isinstance(record, str):
            yield Row(number, error=record)
        elif all(field in (None, "") for field in record):
            yield Row(number, error=EMPTY)
        elif len(record) != len(names):
            yield Row(number, error=f"The row has {len(record)} fields, but the header has {len(names)}.")
        else:
            yield Row(number, dict(zip(names, record, strict=True)))


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DependencyError(
            f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow, or convert it to JSON lines."
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is no complete Parquet file: {_first_line(error)}.") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException

    rows = 0
    with contextlib.closing(_parquet_file(path)) as file:
        try:
            for block in file.iter_batches(PARQUET_ROWS):
                for number, value in enumerate(block.to_pylist(), start=rows + 1):
                    yield Row(number, value)
                rows += block.num_rows
        except (ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged: {_first_line(error)}.") from error


def _xlsx_records(path: Path) -> Iterator[list[Any]]:
    """The cells of each row of the only sheet, in as many columns as its first row has."""
    try:
        import openpyxl
    except ImportError as error:
        raise DependencyError(
            f"{path} is a workbook, which needs openpyxl: pip install openpyxl, or save the sheet as CSV."
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl answers damaged workbooks with any exception, KeyError included
        raise InputError(f"{path} is no complete workbook: {_first_line(error)}.") from error
    with contextlib.closing(book):
        sheets = [sheet for sheet in book.worksheets if any(map(_width, sheet.iter_rows(values_only=True)))]
        if len(sheets) > 1:
            names = ", ".join(sheet.title for sheet in sheets)
            raise InputError(f"{path} has several sheets ({names}): keep one, or save it as CSV.")
        columns = 0
        for cells in sheets[0].iter_rows(values_only=True) if sheets else ():
            columns = columns or _width(cells)
            width = max(columns, _width(cells))
            yield [*cells[:width], *[None] * (width - len(cells))]


def _width(cells: Sequence[Any]) -> int:
    """The number of cells without the empty ones at the end."""
    return max((index for index, cell in enumerate(cells, start=1) if cell is not None), default=0)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _without_empty_end(rows: Iterable[Row]) -> Iterator[Row]:
    empty: list[Row] = []
    for row in rows:
        empty.append(row)
        if row.error != EMPTY:
            yield from empty
            empty.clear()
