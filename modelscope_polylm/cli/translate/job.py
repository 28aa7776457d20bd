"""The translation of one document, from the check of its files to the list of what somebody should look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from modelscope_polylm.cli.batch.job import Progress, collected
from modelscope_polylm.cli.batch.output import OutputFile, check_or_write, model_settings
from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.files import write_atomically
from modelscope_polylm.terminal.output import json_line
from modelscope_polylm.translation.detection import SAMPLE, language_pair
from modelscope_polylm.translation.documents import Document, TextFile
from modelscope_polylm.translation.segments import Segment, SplitText
from modelscope_polylm.translation.translator import SegmentTranslation, Translator, join_text


@dataclass(frozen=True)
class Placed:
    """A segment's translation, and where in the document it stands."""

    place: str
    found: SegmentTranslation

    def __str__(self) -> str:
        return f"{self.place}: {self.found.problem}: {self.found.segment.text:.60}"


@dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
        source, target: ISO 639-1 codes.
        segments: how many the document has.
        written: how many of them are translated; fewer after Ctrl-C.
        suspicious: those that somebody should look at.
        text: the document, translated; None after Ctrl-C.
        run: counts and speed of this run.
    """

    source: str
    target: str
    segments: int
    written: int
    suspicious: list[Placed]
    text: str | None
    run: dict[str, float]

    def record(self) -> dict[str, Any]:
        """The summary as a JSON object, without the text."""
        found = [{"place": each.place, **segment_record(each.found)} for each in self.suspicious]
        counts = {"source": self.source, "target": self.target, "segments": self.segments}
        return {**counts, "suspicious": found, **self.run}


@dataclass(frozen=True)
class TranslationJob:
    """A document on its way through a translator.

    Attributes:
        document: read.
        target: ISO 639-1 code.
        source: the same, or None, which lets it be detected.
        file: how the file of the document was written.
        batch_size: most segments that run together; None leaves it to the backend.
    """

    document: Document
    target: str
    source: str | None = None
    file: TextFile | None = None
    batch_size: int | None = None

    def run(
        self, translator: Translator, out: Path | None, overwrite: bool = False, settings: dict[str, Any] | None = None
    ) -> Summary:
        """Translate what is not translated yet.

        Args:
            translator: runs the segments.
            out: the file for the document, next to which `OUT.segments.jsonl` keeps every segment as it comes; None
                writes nothing.
            overwrite: begin again where the output exists.
            settings: what the translations depend on besides the model and its options.

        Raises:
            InputError: a source language that cannot be found, or is the target.
            OptionError: an output of another run.
            PolyLMError: the output cannot be written.
        """
        source, target = self._languages()
        document = self.document
        texts = [translator.split(text, target, source, document.kept, document.marks) for text in document.texts]
        placed = [(place, each) for place, text in zip(document.places, texts, strict=True) for each in text.segments]
        journal = _Journal(out, overwrite) if out is not None else None
        try:
            if journal is not None:
                languages = {"source": source, "target": target}
                own = {**(settings or {}), **languages, **model_settings(translator.generator, translator.options)}
                check_or_write(journal.out, own, begun=journal.written > 0)
            found, progress = self._translated(translator, placed, journal)
        finally:
            if journal is not None:
                journal.close()
        text = self._rendered(texts, found) if len(found) == len(placed) else None
        if out is not None and text is not None:
            _write(out, text)
        suspicious = [Placed(place, each) for (place, _), each in zip(placed, found, strict=False) if each.problem]
        return Summary(source, target, len(placed), len(found), suspicious, text, progress.summary())

    def _languages(self) -> tuple[str, str]:
        texts = self.document.texts
        sample = "\n".join(islice(texts, SAMPLE))
        if not texts and self.source is None:  # a catalog that is complete already
            return self.target, self.target
        return language_pair(sample or "-", self.target, self.source)

    def _translated(
        self, translator: Translator, placed: Sequence[tuple[str, Segment]], journal: _Journal | None
    ) -> tuple[list[SegmentTranslation], Progress]:
        segments = [segment for _, segment in placed]
        found = journal.read(segments) if journal is not None else []
        progress = Progress(len(placed), len(found))

        def counted() -> Iterator[SegmentTranslation]:
            for each in translator.each(segments[len(found) :], self.batch_size):
                progress.count(1, 0, each.tokens)
                yield each

        try:
            with progress.shown():
                for part in collected(counted()):
                    if journal is not None:
                        journal.append(part, [place for place, _ in placed[len(found) :]], len(found))
                    found += part
        except KeyboardInterrupt:
            if journal is None:
                raise
        return found, progress

    def _rendered(self, texts: Sequence[SplitText], found: Sequence[SegmentTranslation]) -> str:
        left = iter(found)
        joined = [join_text(text, list(islice(left, len(text.segments)))).text for text in texts]
        text = self.document.render(joined)
        return self.file.written(text) if self.file is not None else text


def segment_record(found: SegmentTranslation) -> dict[str, Any]:
    """A segment's translation as a JSON object."""
    record: dict[str, Any] = {"source": found.segment.text, "translation": found.texts[0], "score": found.scores[0]}
    if len(found.texts) > 1:
        several = zip(found.texts, found.scores, strict=True)
        record["alternatives"] = [{"translation": text, "score": score} for text, score in several]
    return {**record, "problem": found.problem, "tokens": found.tokens}


class _Journal:
    """The segments of a run that are translated, one JSON object a line; a later run goes on after them.

    Args:
        out: the document's file.
        overwrite: forget an earlier run.
    """

    header = b""

    def __init__(self, out: Path, overwrite: bool) -> None:
        self.out = out
        self._path = segments_file(out)
        self._file = OutputFile(self._path, self, overwrite)

    @property
    def written(self) -> int:
        """How many segments it has."""
        return self._file.written

    def read(self, segments: Sequence[Segment]) -> list[SegmentTranslation]:
        """The translations that it has of the first segments."""
        with self._path.open("rb") as lines:
            records = [json.loads(line) for line in lines]
        return [_translation(segment, record) for segment, record in zip(segments, records, strict=False)]

    def append(self, found: Sequence[SegmentTranslation], places: Sequence[str], first: int) -> None:
        """Write translations."""
        numbered = zip(range(first + 1, first + len(found) + 1), places, found, strict=False)
        records = [{"segment": number, "place": place, **segment_record(each)} for number, place, each in numbered]
        self._file.append([json_line(record).encode() for record in records])

    def close(self) -> None:
        """Let other processes write it."""
        self._file.close()

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """The lines of a file."""
        return iter(file)

    def is_record(self, record: bytes, number: int) -> bool:
        """Whether a line is that of the segment with a number."""
        return record.startswith(f'{{"segment": {number},'.encode())

    def is_error(self, record: bytes) -> bool:
        """Whether a segment is suspicious."""
        return b'"problem": "' in record


def segments_file(out: Path) -> Path:
    """The file next to the output that has every segment with its translations and scores."""
    return out.with_name(f"{out.name}.segments.jsonl")


def _translation(segment: Segment, record: dict[str, Any]) -> SegmentTranslation:
    found = record.get("alternatives") or [record]
    texts = tuple(each["translation"] for each in found)
    scores = tuple(each["score"] for each in found)
    return SegmentTranslation(segment, texts, scores, record["problem"], record["tokens"])


def _write(out: Path, text: str) -> None:
    try:
        write_atomically(out, text)
    except OSError as error:
        raise PolyLMError(
            f"{out} cannot be written: {error.strerror}. Every segment is in {segments_file(out)}."
        ) from error
