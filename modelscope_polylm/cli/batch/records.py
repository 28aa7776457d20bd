"""How the outcome of a row is written: as a JSON object, as a row of a table, or as a response of OpenAI's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from modelscope_polylm.cli.batch.formats import TEXT_COLUMN, text_of
from modelscope_polylm.cli.batch.openai_batch import OpenAIBatch
from modelscope_polylm.cli.generate import answer_record
from modelscope_polylm.errors import OptionError, PolyLMError
from modelscope_polylm.terminal.output import json_line

if TYPE_CHECKING:
    from modelscope_polylm.cli.batch.requests import Outcome
    from modelscope_polylm.cli.batch.rows import Row

TABLE_DELIMITERS = {".csv": (",", ";"), ".tsv": ("\t",)}
"""What a table may have between its fields, by its suffix; the input's if it may, else the first."""
ANSWER_COLUMNS = ("answer", "tokens", "finish_reason")
SEVERAL_COLUMNS = ("answers", "scores")
ERROR_COLUMN = "error"
LINE_END = "\r\n"
"""Of tables, as RFC 4180 has it; csv then also quotes fields that hold one of the two characters."""


class StoredRecords(Protocol):
    """How the records of a file are told apart."""

    @property
    def header(self) -> bytes:
        """What a file begins with."""

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """The records of a file after its header; the last one may be incomplete, and then has no line end."""

    def is_record(self, record: bytes, number: int) -> bool:
        """Whether a complete record is that of the row with a number."""

    def is_error(self, record: bytes) -> bool:
        """Whether a record holds an error."""


class RecordFormat(StoredRecords, Protocol):
    """How the outcome of a row is written."""

    def record(self, row: Row, outcome: Outcome) -> bytes:
        """The record of a row, with its line end."""


@dataclass(frozen=True)
class JSONRecords:
    """A JSON object a line, in UTF-8; a lone surrogate of the input becomes its JSON escape.

    Attributes:
        make: the object of a row.
        start: how the line of the row with a number begins.
        fails: whether an object holds an error.
    """

    make: Callable[[Row, Outcome], dict[str, Any]]
    start: Callable[[int], str]
    fails: Callable[[dict[str, Any]], bool]
    header: bytes = b""

    def record(self, row: Row, outcome: Outcome) -> bytes:
        """The record of a row, with its line end."""
        try:
            line = json_line(self.make(row, outcome))
        except RecursionError:  # an id may be nested as deeply as JSON is read
            line = json_line({"line": row.number, "error": "The row's id is nested too deeply."})
        return line.encode(errors="backslashreplace")

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """The lines of a file."""
        return iter(file)

    def is_record(self, record: bytes, number: int) -> bool:
        """Whether a line begins as that of the row with a number."""
        return record.startswith(self.start(number).encode())

    def is_error(self, record: bytes) -> bool:
        """Whether an object holds an error."""
        # within a JSON string the quotation mark would have a backslash
        return b'"error": ' in record and self.fails(json.loads(record))


def answer_lines() -> JSONRecords:
    """The usual records: the row's number and 'id', and its answer or 'error'."""

    def make(row: Row, outcome: Outcome) -> dict[str, Any]:
        identity = {"id": row.value["id"]} if isinstance(row.value, dict) and "id" in row.value else {}
        found = {"error": str(outcome)} if isinstance(outcome, PolyLMError) else answer_record(outcome.result)
        return {"line": row.number, **identity, **found}

    return JSONRecords(make, lambda number: f'{{"line": {number},', lambda record: "error" in record)


def response_lines(batch: OpenAIBatch) -> JSONRecords:
    """The records of an OpenAI batch file."""
    return JSONRecords(
        batch.response,
        lambda number: f'{{"id": "batch_req_{number}",',
        lambda record: record["response"]["status_code"] != 200,
    )


def is_table(out: Path) -> bool:
    """Whether an output is a table, which its name says."""
    return out.suffix.lower() in TABLE_DELIMITERS


class TableRecords:
    """A table with the columns of the input, the answer, and the error of a row that has none.

    Args:
        columns: those of the input.
        delimiter: between its fields.
        several: whether rows have several answers, which get columns of their own, as JSON.

    Raises:
        OptionError: the input has a column with a name that is needed.
    """

    def __init__(self, columns: Sequence[str], delimiter: str, several: bool) -> None:
        self._columns, self.delimiter = columns, delimiter
        self._several = SEVERAL_COLUMNS if several else ()
        added = (*ANSWER_COLUMNS, *self._several, ERROR_COLUMN)
        for name in added:
            if name in columns:
                raise OptionError(
                    f"The input has a column {name!r}, which the output needs for itself: rename it, or write to a "
                    ".jsonl file."
                )
        self.header = self._line((*columns, *added))

    def record(self, row: Row, outcome: Outcome) -> bytes:
        """The record of a row, with its line end."""
        fields = row.value if isinstance(row.value, dict) else {TEXT_COLUMN: row.value}
        kept = [fields.get(name) for name in self._columns]
        if isinstance(outcome, PolyLMError):
            return self._line((*kept, *[None] * len((*ANSWER_COLUMNS, *self._several)), str(outcome)))
        found = answer_record(outcome.result)
        several = (found["texts"], found["scores"]) if self._several else ()
        return self._line((*kept, found["text"], found["tokens"], found["finish_reason"], *several, None))

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """The records of a file after its header; their fields may hold line ends."""
        lines: list[bytes] = []
        is_quoted = False
        for line in file:
            lines.append(line)
            is_quoted ^= line.count(b'"') % 2 == 1
            if not is_quoted:
                yield b"".join(lines)
                lines.clear()
        if lines:
            yield b"".join(lines).rstrip(b"\r\n")

    def is_record(self, record: bytes, number: int) -> bool:
        """Always: rows of a table have no numbers."""
        return True

    def is_error(self, record: bytes) -> bool:
        """Whether the last field, that of the error, has a text."""
        return not record.endswith(f"{self.delimiter}{LINE_END}".encode())

    def _line(self, fields: Iterable[Any]) -> bytes:
        text = io.StringIO()
        values = ("" if value is None else text_of(value) for value in fields)
        csv.writer(text, delimiter=self.delimiter, lineterminator=LINE_END).writerow(values)
        return text.getvalue().encode(errors="backslashreplace")
