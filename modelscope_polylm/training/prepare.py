"""`polylm data`: data sets become one file of records, and all that was left out or changed is counted."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modelscope_polylm.errors import DownloadError, InputError, OptionError
from modelscope_polylm.training.layouts import LeftOut, Record
from modelscope_polylm.training.rows import data_files, read_rows
from modelscope_polylm.training.sources import SOURCES, Source, source_of_row

ROWS_PER_REPORT = 1000
"""Progress is told once for so many rows."""
NO_LANGUAGE = "-"

Use = Literal["research", "commercial"]
Progress = Callable[[str, int], None]
"""Takes what is read and the number of rows so far."""


@dataclass(frozen=True)
class DataSet:
    """A source and where its rows come from: files, or rows that somebody else reads."""

    source: Source
    path: Path | None = None
    rows: Callable[[], Iterable[tuple[str, Any]]] | None = None
    """Gives language and row."""

    def read(self) -> Iterator[tuple[str, Any]]:
        """Yield language and row. Raises InputError for a file of another source."""
        if self.rows is not None:
            yield from self.rows()
            return
        for file in data_files(self.path or ""):
            language = _language_of(file, self.source)
            rows = read_rows(file)
            for row in _first_checked(rows, self.source, file):
                yield language, row


def own_data_set(path: Path) -> DataSet:
    """A file or folder of somebody's own, whose rows tell what they are. Raises InputError."""
    first = next((row for row in read_rows(path) if isinstance(row, Mapping)), None)
    if first is None:
        raise InputError(f"{path} has no row.")
    return DataSet(source_of_row(first), path)


@dataclass
class Counts:
    """What became of the rows of one source in one language.

    Attributes:
        read: rows, or answers where a row holds several.
        kept: records that were written.
        left_out: by reason; with `kept` they add up to `read`.
        notes: by what was changed or is remarkable; a record may have several.
    """

    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass
class DataReport:
    """The outcome of `prepare_data`.

    Attributes:
        counts: by source and language, "-" where the source does not tell it.
        licences: by source.
        warnings: what to know before the data are used.
    """

    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def of(self, source: str, language: str) -> Counts:
        """The counts to add to."""
        return self.counts.setdefault((source, language or NO_LANGUAGE), Counts())

    @property
    def kept(self) -> int:
        """Records that were written."""
        return sum(counts.kept for counts in self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        rows = [
            {
                "source": source,
                "language": language,
                "read": counts.read,
                "kept": counts.kept,
                "left_out": dict(counts.left_out.most_common()),
                "notes": dict(counts.notes.most_common()),
            }
            for (source, language), counts in self.counts.items()
        ]
        card = {name: SOURCES[name].card_rows for name in self.licences}
        return {"rows": rows, "card_rows": card, "licences": self.licences, "warnings": self.warnings}


def prepare_data(
    data_sets: Sequence[DataSet], out: Path, use: Use = "research", progress: Progress = lambda name, count: None
) -> DataReport:
    """Read data sets, clean them, and write their records as JSON lines in the order in which they were read.

    A record with the texts of an earlier one is left out. The same input gives the same file. Memory grows by 100 bytes
    for a record.

    Args:
        data_sets: what to read.
        out: the file to write, and its folder if it is missing; it is there only when it is complete.
        use: what the data are for; a source whose licence forbids that is refused.
        progress: called now and then.

    Raises:
        OptionError: a licence forbids the use.
        InputError: a file that cannot be read, or of another source.
        DownloadError: the disk is full.
    """
    report = DataReport()
    for data_set in data_sets:
        _check_licence(data_set.source, use, report)
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            for line in _lines(data_sets, report, progress):
                file.write(line)
        os.replace(unfinished, out)
    except InputError:
        raise
    except OSError as error:
        raise DownloadError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return report


def read_data(
    data_sets: Iterable[DataSet],
    report: DataReport,
    progress: Progress = lambda name, count: None,
    keep_duplicates: bool = False,
) -> Iterator[tuple[str, Record]]:
    """Yield the source and each record that is kept, and count all others in the report."""
    seen: dict[bytes, str] = {}
    for data_set in data_sets:
        name = data_set.source.name
        for number, (language, row) in enumerate(data_set.read()):
            if number % ROWS_PER_REPORT == 0:
                progress(name, number)
            for record in data_set.source.records(row, language):
                counts = report.of(name, record.language)
                counts.read += 1
                reason = record.reason if isinstance(record, LeftOut) else None
                if isinstance(record, Record) and not keep_duplicates:
                    reason = _duplicate(record, name, seen)
                if reason:
                    counts.left_out[reason] += 1
                elif isinstance(record, Record):
                    counts.kept += 1
                    counts.notes.update(record.notes)
                    yield name, record


def _lines(data_sets: Iterable[DataSet], report: DataReport, progress: Progress) -> Iterator[str]:
    for source, record in read_data(data_sets, report, progress):
        texts: Mapping[str, Any] = {"messages": record.messages} if record.messages else {"text": record.text}
        language = {"language": record.language} if record.language else {}
        yield json.dumps({**texts, "source": source, **language}, ensure_ascii=False) + "\n"


def _duplicate(record: Record, source: str, seen: dict[bytes, str]) -> str | None:
    """Why a record is left out that was there before."""
    texts = [record.text, *(message["content"] for message in record.messages)]
    digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()
    if digest in seen:
        return f"the same as a record of {seen[digest]}"
    seen[digest] = source
    return None


def _check_licence(source: Source, use: Use, report: DataReport) -> None:
    report.licences[source.name] = source.licence
    if use != "commercial":
        return
    if source.commercial is False:
        raise OptionError(f"{source.name} may not be used commercially ({source.licence}): leave it out.")
    if source.commercial is None:
        report.warnings.append(f"Whether {source.name} may be used commercially is {source.licence}.")


def _language_of(file: Path, source: Source) -> str:
    """The language that a file is named after, where the files of a source are."""
    if not source.languages:
        return ""
    language = file.name.split(".")[0].lower()
    if language not in source.languages:
        raise InputError(
            f"{file} does not tell its language: files of {source.name} are named after it, {source.files}."
        )
    return language


def _first_checked(rows: Iterator[Any], source: Source, file: Path) -> Iterator[Any]:
    """The rows of a file, the first of which must have the source's fields."""
    for number, row in enumerate(rows):
        if number == 0 and isinstance(row, Mapping) and not source.fits(row):
            others = [other.name for other in SOURCES.values() if other.fits(row)]
            advice = f"its rows look like those of {' or '.join(others)}" if others else "see `polylm data --help`"
            raise InputError(
                f"{file} is not {source.name}, whose rows have {', '.join(source.layout.required)}: this one has "
                f"{', '.join(map(str, row))}; {advice}."
            )
        yield row
