"""One batch from its files' check to its end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.cli.batch.output import (
    OutputFile,
    OutputStream,
    Record,
    check_or_write,
    is_stream,
    model_settings,
    settings_file,
)
from modelscope_polylm.cli.batch.rows import InputFile, Question, Row
from modelscope_polylm.cli.generate import answer_record
from modelscope_polylm.errors import DeviceError, InputError, OptionError
from modelscope_polylm.files import file_sha256
from modelscope_polylm.terminal.output import NARROW, console, is_terminal

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import GenerationResult, TextGenerator
    from modelscope_polylm.inputs import Prompt


@dataclass(frozen=True)
class Job:
    """What is to be answered, how, and where the answers go.

    Attributes:
        source: the rows.
        out: the output.
        question: makes inputs of rows.
        chat: whether a plain text is a user's message.
        batch_size: rows that run together.
        overwrite: begin again where the output exists.
    """

    source: InputFile
    out: Path
    question: Question
    chat: bool = False
    batch_size: int = 16
    overwrite: bool = False

    def check(self) -> None:
        """Find what is wrong with the files before a model is loaded. Raises OptionError or InputError."""
        self.question.check_columns(self.source.columns())
        if is_stream(self.out):
            return
        if self.out.is_dir():
            raise OptionError(f"{self.out} is a folder: name a file.")
        if not self.out.parent.is_dir():
            raise OptionError(f"The folder {self.out.parent} does not exist: create it, or choose another output.")
        if not self.out.exists():
            return
        if self.out.samefile(self.source.path):
            raise OptionError(f"{self.out} is the input: choose another output.")
        if self.out.stat().st_size and not settings_file(self.out).exists() and not self.overwrite:
            raise OptionError(f"{self.out} exists and is of no batch: choose another output, or pass --overwrite.")

    def run(self, generator: TextGenerator, options: Mapping[str, Any]) -> dict[str, Any]:
        """Answer all rows that are not answered yet.

        Returns:
            'lines' in all, and of this run 'answered', 'errors', 'tokens', 'seconds', 'tokens_per_second'.

        Raises:
            OptionError: wrong options, or an output of another run.
            PolyLMError: the output cannot be written.
        """
        checked = generator.options(options)
        output = self._opened(model_settings(generator, checked))
        try:
            total = sum(1 for _ in self.source.rows())
            progress = Progress(total, output.written)
            work = Work(generator, checked, self.question, self.chat, self.batch_size, progress.report)
            with progress.shown():
                for records in work.records(self.source.rows(), output.written):
                    output.append(records)
        finally:
            output.close()
        return {"lines": total, **progress.summary()}

    def _opened(self, settings: dict[str, Any]) -> OutputFile | OutputStream:
        if is_stream(self.out):
            return OutputStream(self.out)
        output = OutputFile(self.out, self.overwrite)
        try:
            check_or_write(self.out, {**self._settings(), **settings}, begun=output.written > 0)
        except BaseException:
            output.close()
            raise
        return output

    def _settings(self) -> dict[str, Any]:
        reading = {"input": file_sha256(self.source.path), "kind": self.source.kind, "encoding": self.source.encoding}
        asking = {"column": self.question.column, "template": self.question.template, "chat": self.chat}
        return {**reading, **asking, "batch_size": self.batch_size}


def complete_lines(out: Path) -> int:
    """How many lines of an output file are complete."""
    if not out.exists():
        return 0
    with out.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


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
        self.report(len(prompts), 0, sum(len(completion.ids) for reply in replies for completion in reply.completions))
        return [answer_record(reply) for reply in replies]

    def _replies(self, prompts: list[Prompt]) -> list[GenerationResult]:
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


class Progress:
    """Counts, and shows a bar on a terminal's stderr.

    Attributes:
        rows, errors, tokens: finished in this run.
    """

    def __init__(self, total: int, done: int) -> None:
        self.rows, self.errors, self.tokens = 0, 0, 0
        self._total, self._done = total, done
        self._start = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens, since the start."""
        return self.tokens / (time.perf_counter() - self._start)

    def summary(self) -> dict[str, float]:
        """What this run has done."""
        seconds = round(time.perf_counter() - self._start, 3)
        speed = round(self.tokens_per_second, 1)
        counts = {"answered": self.rows - self.errors, "errors": self.errors, "tokens": self.tokens}
        return {**counts, "seconds": seconds, "tokens_per_second": speed}

    def report(self, rows: int, errors: int, tokens: int) -> None:
        """Count finished rows."""
        self.rows, self.errors, self.tokens = self.rows + rows, self.errors + errors, self.tokens + tokens
        if self._bar is not None:
            done = min(self._done + self.rows, self._total)
            self._bar.update(self._task, completed=done, speed=f"{self.tokens_per_second:,.0f} tokens/s")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar on a terminal while the run lasts."""
        if not is_terminal(sys.stderr):
            yield
            return
        from rich import progress

        screen = console(stderr=True)
        wide = [progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[speed]}")]
        columns = [
            *(wide if screen.width >= NARROW else []),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
        ]
        with progress.Progress(*columns, console=screen) as self._bar:
            self._task = self._bar.add_task("", total=self._total, completed=self._done, speed="")
            yield
