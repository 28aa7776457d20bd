"""Reads the rows of a text, JSONL or CSV file, one at a time. What is wrong with a row stays with that row."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modelscope_polylm.errors import InputError, OptionError

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
BINARY_CHECK_BYTES = 1 << 16
LARGEST_FIELD = 1 << 30  # csv's own limit of 131,072 characters is for interactive use


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: counted from 1; of a CSV file the header is not counted.
        value: a text, or what JSON or the CSV columns hold.
        error: why there is no value.
    """

    number: int
    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class InputFile:
    """A file of rows.

    Attributes:
        path: the file.
        kind: 'text', 'jsonl', 'csv' or 'tsv'.
        encoding: a superset of ASCII.
    """

    path: Path
    kind: str
    encoding: str = "utf-8"

    @classmethod
    def check(cls, path: Path, encoding: str = "utf-8") -> InputFile:
        """Take a file whose name says what it is; all but .jsonl, .csv and .tsv are lines of text.

        Raises:
            InputError: it cannot be read twice, or is binary.
            OptionError: an encoding that is unknown, or in which a line cannot be told from its bytes.
        """
        try:
            ascii_stays = codecs.lookup(encoding) and "a\n".encode(encoding) == b"a\n"
        except (LookupError, ValueError):
            ascii_stays = False
        if not ascii_stays:
            raise OptionError(f"encoding={encoding!r}: use utf-8, gb18030, latin-1 or another superset of ASCII.")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no ordinary file: a batch reads its input twice.")
        with _opened(path) as file:
            if b"\0" in file.read(BINARY_CHECK_BYTES):
                raise InputError(f"{path} is binary or UTF-16, not text: convert it to UTF-8 first.")
        return cls(path, KINDS.get(path.suffix.lower(), "text"), encoding)

    def rows(self) -> Iterator[Row]:
        """All rows. Raises InputError if the file cannot be read."""
        with _opened(self.path) as file:
            if self.kind in DELIMITERS:
                yield from self._csv_rows(file)
            else:
                for number, line in enumerate(file, start=1):
                    yield self._line(number, line)

    def columns(self) -> list[str] | None:
        """The names in a CSV file's header; None for files without one. Raises InputError for an empty header."""
        if self.kind not in DELIMITERS:
            return None
        with _opened(self.path) as file:
            names = next(self._records(file), None)
        if not isinstance(names, list) or not any(names):
            raise InputError(f"{self.path} has no header: the first line of a CSV file names its columns.")
        return names

    def _line(self, number: int, line: bytes) -> Row:
        line = line.rstrip(b"\r\n")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode(self.encoding)
        except UnicodeDecodeError as error:
            return Row(number, error=f"The line is not {self.encoding}: {error.reason} at byte {error.start}.")
        if not text.strip():
            return Row(number, error="The line is empty.")
        return Row(number, text) if self.kind == "text" else _json_row(number, text)

    def _csv_rows(self, file: BinaryIO) -> Iterator[Row]:
        records = self._records(file)
        names = next(records, None)
        if not isinstance(names, list):
            return
        for number, record in enumerate(records, start=1):
            if isinstance(record, str):
                yield Row(number, error=record)
            elif not record:
                yield Row(number, error="The line is empty.")
            elif len(record) != len(names):
                yield Row(number, error=f"The row has {len(record)} fields, but the header has {len(names)}.")
            elif not _is_unicode("".join(record)):
                yield Row(number, error=f"The row is not {self.encoding}.")
            else:
                yield Row(number, dict(zip(names, record, strict=True)))

    def _records(self, file: BinaryIO) -> Iterator[list[str] | str]:
        """The fields of each record, or what is wrong with it."""
        encoding = "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding
        text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")
        csv.field_size_limit(LARGEST_FIELD)
        reader = csv.reader(text, delimiter=DELIMITERS[self.kind], strict=True)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"The row that ends at line {reader.line_num} is not valid CSV: {error}."


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _json_row(number: int, text: str) -> Row:
    try:
        return Row(number, json.loads(text))
    except RecursionError:
        return Row(number, error="The line is nested too deeply.")
    except ValueError as error:
        return Row(number, error=f"The line is not JSON: {error}.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


PLACE = re.compile(r"\{(\w+)\}")
TEXT = "text"


@dataclass(frozen=True)
class Question:
    """Makes the input for the model.

    Attributes:
        column: the column or key with the text; 'text' if None.
        template: a text with places such as {text} and {title}; {text} is the row's text.
    """

    column: str | None = None
    template: str | None = None

    def check_columns(self, known: Collection[str] | None) -> None:
        """Raise OptionError for a column that a file with a header lacks; `known` is None for other files."""
        if self.template is not None and not PLACE.search(self.template):
            raise OptionError(f"template={self.template!r} has no place for the text: write {{text}} where it goes.")
        if known is None:
            return
        for name in self._columns():
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(map(repr, known))}."
                raise OptionError(f"The file has no column {name!r}: {hint}")

    def of(self, value: Any) -> Any:
        """The input for a row's value: a text, or `{'messages': ...}`. Raises InputError."""
        if isinstance(value, dict) and "messages" in value and self.column is None and self.template is None:
            return {"messages": value["messages"]}
        if not isinstance(value, (str, dict)):
            raise InputError(f"A row must be a text or an object, not {value!r:.80}.")
        if self.template is None:
            return self._field(value, TEXT)
        return PLACE.sub(lambda place: _as_text(self._field(value, place[1])), self.template)

    def _columns(self) -> list[str]:
        named = PLACE.findall(self.template) if self.template is not None else [TEXT]
        return [self.column or TEXT if name == TEXT else name for name in named]

    def _field(self, value: str | dict[str, Any], name: str) -> Any:
        if isinstance(value, str):
            if name == TEXT:
                return value
            raise InputError(f"The row is a text and has no {name!r}.")
        key = self.column or TEXT if name == TEXT else name
        if key not in value:
            raise InputError(f"The row has no {key!r}; it has {', '.join(map(repr, value)) or 'nothing'}.")
        return value[key]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
