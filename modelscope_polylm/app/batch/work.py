"""Answers rows in windows: within a window inputs of similar length run together, its records come in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelscope_polylm.app.answer_record import answer_record
from modelscope_polylm.app.batch.output import Record
from modelscope_polylm.app.batch.questions import Question
from modelscope_polylm.app.batch.rows import Row
from modelscope_polylm.errors import DeviceError, InputError

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import Prompt, Reply, TextGenerator

WINDOW_BATCHES = 16
"""A window is this many batches: enough to find rows of similar length, little enough to lose by a kill."""
Report = Callable[[int, int, int], None]
"""Takes the number of rows that were finished, errors among them, and generated tokens."""


@dataclass(frozen=True)
class Work:
    """Turns rows into records.

    Attributes:
        generator, options: what answers them.
        question: makes inputs of rows.
        chat: whether a plain text is a user's message.
        batch_size: rows that run together.
        report: hears of finished rows.
    """

    generator: TextGenerator
    options: GenerationOptions
    question: Question
    chat: bool
    batch_size: int
    report: Report

    def records(self, rows: Iterator[Row], written: int) -> Iterator[list[Record]]:
        """A list of records for each window, without the `written` ones that an earlier run got to.

        Windows begin at the same rows in every run, and so the same rows run together: a run that goes on gives the
        answers that it would have given without the interruption.
        """
        window = WINDOW_BATCHES * self.batch_size
        done = written // window * window
        rows = islice(rows, done, None)
        while some := list(islice(rows, window)):
            if done + len(some) > written:
                yield self._window(some)[max(written - done, 0) :]
            done += len(some)

    def _window(self, rows: Sequence[Row]) -> list[Record]:
        records: dict[int, Record] = {}
        prompts: dict[int, Prompt] = {}
        for index, row in enumerate(rows):
            try:
                prompts[index] = self._prompt(row)
            except InputError as error:
                records[index] = {"error": str(error)}
        self.report(len(records), len(records), 0)
        by_length = sorted(prompts, key=lambda index: len(prompts[index].ids))
        for first in range(0, len(by_length), self.batch_size):
            batch = by_length[first : first + self.batch_size]
            records.update(zip(batch, self._answers([prompts[index] for index in batch]), strict=True))
        return [{"line": row.number, **_identity(row), **records[index]} for index, row in enumerate(rows)]

    def _prompt(self, row: Row) -> Prompt:
        if row.error is not None:
            raise InputError(row.error)
        return self.generator.reader.read(self.question.of(row.value), self.options, chat=self.chat)

    def _answers(self, prompts: list[Prompt]) -> list[Record]:
        try:
            replies = self._replies(prompts)
        except DeviceError as error:
            if len(prompts) == 1:
                self.report(1, 1, 0)
                return [{"error": str(error)}]
            half = len(prompts) // 2
            return self._answers(prompts[:half]) + self._answers(prompts[half:])
        self.report(len(prompts), 0, sum(len(answer.ids) for reply in replies for answer in reply.answers))
        return [answer_record(reply) for reply in replies]

    def _replies(self, prompts: list[Prompt]) -> list[Reply]:
        import torch

        try:
            return self.generator.reply(prompts, self.options)
        except torch.OutOfMemoryError as error:
            text = f"{len(prompts)} rows do not fit into the memory of {self.generator.backend.device}."
            raise DeviceError(text) from error


def _identity(row: Row) -> Record:
    """The row's own 'id', so that answers can be found again."""
    value: Any = row.value
    return {"id": value["id"]} if isinstance(value, dict) and "id" in value else {}
