"""Run rows: their prompts are read, those of equal options and similar lengths run together, results keep the order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelscope_polylm.cli.batch.requests import RequestSource, RowRequest
from modelscope_polylm.cli.batch.rows import Row
from modelscope_polylm.errors import DeviceError, InputError, OptionError, PolyLMError

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import Prompt, Reply, TextGenerator

WINDOW_BATCHES = 16
"""A window is this many batches: enough to find rows of similar length, little enough to lose by a kill."""

CountRows = Callable[[int, int, int], None]
"""Takes the number of rows that were finished, errors among them, and generated tokens."""


@dataclass(frozen=True)
class RowAnswers:
    """The prompt of a row and its answers."""

    prompt: Prompt
    reply: Reply

    @property
    def tokens(self) -> int:
        """Generated tokens, of all answers."""
        return sum(len(answer.ids) for answer in self.reply.answers)


Outcome = RowAnswers | PolyLMError
"""What became of a row: its answers, or why there are none."""


def windows(rows: Iterable[Row], size: int, written: int) -> Iterator[tuple[list[Row], int]]:
    """The rows in windows, without the windows that an earlier run has written.

    Windows begin at the same rows in every run, and so the same rows run together: a run that goes on gives the answers
    that it would have given without the interruption.

    Args:
        rows: all rows.
        size: rows of a window.
        written: rows that an earlier run has written.

    Yields:
        A window, and how many of its rows are written.
    """
    start = written // size * size
    rows = islice(rows, start, None)
    while window := list(islice(rows, size)):
        yield window, max(written - start, 0)
        start += len(window)


class RowRunner:
    """Turns rows into outcomes.

    Args:
        generator: answers them.
        options: generation options of the command.
        source: makes requests of rows.
        batch_size: rows that run together.
        count: hears of finished rows.

    Raises:
        OptionError: options that cannot be.
    """

    def __init__(
        self,
        generator: TextGenerator,
        options: Mapping[str, Any],
        source: RequestSource,
        batch_size: int,
        count: CountRows,
    ) -> None:
        self.shared_options = generator.options(options)
        self.window_size = WINDOW_BATCHES * batch_size
        self._generator, self._options, self._source = generator, options, source
        self._batch_size, self._count = batch_size, count

    def run(self, rows: Sequence[Row]) -> list[Outcome]:
        """The outcomes of a window, in the order of its rows.

        Raises:
            OptionError: the command's options cannot be; a row's own options make an outcome of that row alone.
        """
        outcomes: dict[int, Outcome] = {}
        prompts: dict[int, tuple[Prompt, GenerationOptions]] = {}
        for index, row in enumerate(rows):
            try:
                prompts[index] = self._prompt(row)
            except InputError as error:
                outcomes[index] = error
        self._count(len(outcomes), len(outcomes), 0)
        for batch in equal_options(prompts, self._batch_size):
            options = prompts[batch[0]][1]
            outcomes.update(zip(batch, self._answered([prompts[index][0] for index in batch], options), strict=True))
        return [outcomes[index] for index in range(len(rows))]

    def _prompt(self, row: Row) -> tuple[Prompt, GenerationOptions]:
        if row.error is not None:
            raise InputError(row.error)
        request = self._source.read(row.value)
        if request.options is None:
            return self._read(request, self.shared_options), self.shared_options
        try:
            options = self._own_options(request.options)
            return self._read(request, options), options
        except OptionError as error:
            raise InputError(str(error)) from error

    def _own_options(self, options: Mapping[str, Any]) -> GenerationOptions:
        checked = self._generator.options({**self._options, **options})
        # beam search has no stop strings; a row with options of its own has them cut off its answers
        return dataclasses.replace(checked, stop_strings=None) if checked.num_beams > 1 else checked

    def _read(self, request: RowRequest, options: GenerationOptions) -> Prompt:
        markers = bool(request.allow_role_markers)
        return self._generator.reader.read(request.value, options, chat=request.chat, allow_role_markers=markers)

    def _answered(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Outcome]:
        """The outcomes of one batch; one that does not fit into memory is halved."""
        try:
            replies = self._replies(prompts, options)
        except OptionError as error:
            if options == self.shared_options:
                raise
            return self._failed(prompts, error)
        except DeviceError as error:
            if len(prompts) == 1:
                return self._failed(prompts, error)
            half = len(prompts) // 2
            return self._answered(prompts[:half], options) + self._answered(prompts[half:], options)
        answers = [RowAnswers(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        self._count(len(answers), 0, sum(each.tokens for each in answers))
        return list(answers)

    def _failed(self, prompts: Sequence[Prompt], error: PolyLMError) -> list[Outcome]:
        self._count(len(prompts), len(prompts), 0)
        return [error] * len(prompts)

    def _replies(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Reply]:
        import torch

        try:
            return self._generator.reply(prompts, options)
        except torch.OutOfMemoryError as error:
            text = f"{len(prompts)} rows do not fit into the memory of {self._generator.backend.device}."
            raise DeviceError(text) from error


def equal_options(prompts: Mapping[int, tuple[Prompt, GenerationOptions]], batch_size: int) -> Iterator[list[int]]:
    """The keys of prompts in batches of equal options and similar lengths, in a fixed order."""
    groups: dict[str, list[int]] = {}
    for index, (_, options) in prompts.items():
        groups.setdefault(repr(options), []).append(index)  # options hold lists, and have no hash
    for group in groups.values():
        by_length = sorted(group, key=lambda index: len(prompts[index][0].ids))
        for first in range(0, len(by_length), batch_size):
            yield by_length[first : first + batch_size]
