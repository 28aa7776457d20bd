"""What `polylm translate` is given: a text, stdin, a document, or a table whose one column is translated."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_polylm.cli.batch.formats import CSV, FORMATS_BY_SUFFIX, JSONL, TEXT_COLUMN, text_of
from modelscope_polylm.cli.batch.rows import EMPTY, BatchInput
from modelscope_polylm.cli.generate import read_stdin
from modelscope_polylm.errors import InputError, OptionError, suggestion
from modelscope_polylm.terminal.output import json_line
from modelscope_polylm.translation.documents import FORMATS, Document, TextFile, format_of, read_document
from modelscope_polylm.translation.segments import KEPT, MARKS

STDIN = "-"
TABLE_FORMATS = (CSV, JSONL)
ALL_FORMATS = (*FORMATS, *TABLE_FORMATS)
LINE_ENDS = {CSV: "\r\n", JSONL: "\n"}


def table_format_of(path: Path) -> str | None:
    """'csv' or 'jsonl', as a file's name tells; None for another name."""
    found = FORMATS_BY_SUFFIX.get(path.suffix.lower())
    return found if found in TABLE_FORMATS else None


@dataclass(frozen=True)
class TranslationInput:
    """What the command is to translate.

    Attributes:
        name: a file, 'stdin', or nothing for a text of the command line.
        file: the text, and how it was written.
        digest: sha256 of its bytes.
        format: that of a document; None for a text.
        encoding: of a file.
    """

    name: str
    file: TextFile
    digest: str
    format: str | None
    encoding: str

    @classmethod
    def read(cls, text: str, encoding: str, format: str | None, out: Path | None) -> TranslationInput:
        """Read a text, stdin or a file. Raises InputError or OptionError, which name it."""
        if format is not None and format not in ALL_FORMATS:
            raise OptionError(f"--format {format!r:.40} is unknown: {suggestion(format, ALL_FORMATS)}")
        path = _file_of(text)
        if path is not None:
            name, content = text, path.read_bytes()
            format = format or format_of(path) or table_format_of(path) or "txt"
        else:
            name, content = ("stdin", read_stdin()) if text == STDIN else ("", text.encode(errors="surrogateescape"))
            format = format or (None if out is None else "txt")
        try:
            file = TextFile("") if format in TABLE_FORMATS else TextFile.decoded(content, encoding if name else "utf-8")
        except InputError as error:
            raise InputError(f"{name or 'The text'}: {error}") from error
        return cls(name, file, hashlib.sha256(content).hexdigest(), format, encoding)

    def document(self, target: str, column: str | None, into: str) -> Document | None:
        """What is to be translated as a document; None for a text. Raises InputError or OptionError."""
        if self.format not in TABLE_FORMATS and column is not None:
            raise OptionError(f"--column is for {' and '.join(TABLE_FORMATS)}: leave it out.")
        if self.format is None:
            return None
        if self.format in TABLE_FORMATS and not Path(self.name).is_file():
            raise OptionError(f"--format {self.format} needs a file: a table is read twice.")
        with self.named_errors():
            if self.format in TABLE_FORMATS:
                return Table(Path(self.name), self.format, column, into, self.encoding)
            return read_document(self.file.text, self.format, target)

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Let errors about the document say which one it is."""
        try:
            yield
        except InputError as error:
            is_named = not self.name or str(error).startswith(self.name)
            raise (error if is_named else InputError(f"{self.name}: {error}")) from error


def _file_of(text: str) -> Path | None:
    """The file that a text names; None for a text. Raises InputError for what looks like a file but is none."""
    if text == STDIN or "\n" in text:
        return None
    path = Path(text)
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError):  # too long, or with characters that no name has
        return None
    looks_like_file = (format_of(path) or table_format_of(path)) and not any(each.isspace() for each in text)
    if looks_like_file or (is_folder and text):
        raise InputError(f"{text} is {'a folder' if is_folder else 'no file here'}: name a file, or give a text.")
    return None


class Table:
    """The rows of a CSV file or of JSON lines.

    Args:
        path: the file.
        format: 'csv' or 'jsonl'.
        column: what is translated.
        into: the column for the translations, which the file must not have.
        encoding: of the file.

    Raises:
        InputError: a row that cannot be read, or an empty file.
        OptionError: there is no such column, or there is one for the translations already.
    """

    kept, marks = KEPT, MARKS

    def __init__(self, path: Path, format: str, column: str | None, into: str, encoding: str) -> None:
        self._column, self._into = column or TEXT_COLUMN, into
        self._input = BatchInput.find(path, encoding, format=format, columns=(self._column,))
        self._rows = [self._checked(row.number, row.value, row.error) for row in self._input.rows()]
        if not self._rows:
            raise InputError("It has no rows: there is nothing to translate.")
        self._columns = self._input.columns() or list(dict.fromkeys(key for row in self._rows for key in row))
        if self._column not in self._columns:
            raise OptionError(
                f"There is no column {self._column!r:.60}: name one with --column; "
                f"{suggestion(self._column, self._columns, listing='it has')}"
            )
        if into in self._columns:
            raise OptionError(f"There is a column {into!r} already: name another one with --into.")
        self._numbers = [number for number, row in enumerate(self._rows) if self._text(row).strip()]
        self.texts = [self._text(self._rows[number]) for number in self._numbers]
        self.places = [f"row {number + 1}" for number in self._numbers]

    def render(self, translations: Sequence[str]) -> str:
        """The table with the column of translations; a row without a text gets an empty one."""
        found = dict(zip(self._numbers, translations, strict=True))
        rows = [{**row, self._into: found.get(number, "")} for number, row in enumerate(self._rows)]
        if self._input.format.name == JSONL:
            return "".join(map(json_line, rows))
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self._input.format.delimiter, lineterminator=LINE_ENDS[CSV])
        names = [*self._columns, self._into]
        writer.writerows([names, *([text_of(row.get(name, "")) for name in names] for row in rows)])
        return text.getvalue()

    def _text(self, row: dict[str, Any]) -> str:
        value = row.get(self._column)
        return value if isinstance(value, str) else ""

    def _checked(self, number: int, value: Any, error: str | None) -> dict[str, Any]:
        """A row as a mapping; one that is empty has nothing in its columns."""
        if error == EMPTY:
            return {}
        if error is not None:
            raise InputError(f"Row {number}: {error}")
        row = {TEXT_COLUMN: value} if isinstance(value, str) else value
        if not isinstance(row, dict):
            raise InputError(f"Row {number} is neither a text nor an object: {value!r:.60}.")
        if not isinstance(row.get(self._column, ""), str | None):
            raise InputError(f"Row {number} has no text in {self._column!r}: {row[self._column]!r:.60}.")
        return row
