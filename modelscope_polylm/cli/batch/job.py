"""One batch, from the check of its files to its end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modelscope_polylm.cli.batch.openai_batch import OpenAIBatch, is_request
from modelscope_polylm.cli.batch.output import (
    OutputFile,
    OutputStream,
    check_or_write,
    check_output,
    is_stream,
    model_settings,
)
from modelscope_polylm.cli.batch.records import (
    TABLE_DELIMITERS,
    RecordFormat,
    TableRecords,
    answer_lines,
    is_table,
    response_lines,
)
from modelscope_polylm.cli.batch.requests import PromptTemplate, RequestSource, RowRunner
from modelscope_polylm.cli.batch.rows import BatchInput, Row
from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.files import file_sha256
from modelscope_polylm.terminal.output import NARROW, console, is_terminal

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import TextGenerator

Found = TypeVar("Found")
WRITE_ROWS, WRITE_SECONDS = 256, 0.5
"""What a kill can lose: rows that were answered but not written."""


@dataclass(frozen=True)
class BatchJob:
    """What is to be answered, how, and where the answers go.

    Attributes:
        source: the rows.
        out: the output.
        prompts: makes prompts of rows.
        batch_size: most rows that run together; None leaves it to the backend.
        overwrite: begin again where the output exists.
        models: what the requests of an OpenAI batch file may call the model.
    """

    source: BatchInput
    out: Path
    prompts: PromptTemplate
    batch_size: int | None = None
    overwrite: bool = False
    models: Sequence[str] = ()

    def check(self) -> None:
        """Find what is wrong with the files before a model is loaded. Raises OptionError or InputError."""
        if self._holds_requests():
            self._check_requests()
        else:
            columns = self.source.columns()
            self.prompts.check_columns(columns)
            if is_table(self.out) and columns is not None:
                self._table(columns, several=False)
        check_output(self.out, self.source.path, self.overwrite)

    def run(self, generator: TextGenerator, options: Mapping[str, Any]) -> dict[str, Any]:
        """Answer all rows that are not answered yet.

        Returns:
            'lines' in all, and how many of them are 'written' and 'failed'; and of this run 'answered', 'errors',
            'tokens', 'seconds', 'tokens_per_second'. After Ctrl-C fewer are written than there are.

        Raises:
            OptionError: wrong options, or an output of another run.
            PolyLMError: the output cannot be written.
        """
        batch = OpenAIBatch(self.models) if self._holds_requests() else None
        source: RequestSource = batch or self.prompts
        checked = generator.options(options)
        survey = Survey.of(self.source.rows(), is_batch=batch is not None)
        output, format = self._opened(generator, checked, survey, batch)
        try:
            progress = Progress(survey.rows, output.written)
            runner = RowRunner(generator, options, source, self.batch_size, progress.count)
            with progress.shown():
                outcomes = runner.run(islice(self.source.rows(), output.written, None))
                for part in collected(outcomes):
                    output.append([format.record(row, outcome) for row, outcome in part])
        except KeyboardInterrupt:
            if isinstance(output, OutputStream):
                raise
            output.count()  # records may have been written without having been counted
        finally:
            output.close()
        counts = {"lines": survey.rows, "written": output.written, "failed": output.failed}
        return {**counts, **progress.summary()}

    def _holds_requests(self) -> bool:
        return is_request(next((row.value for row in self.source.rows()), None))

    def _check_requests(self) -> None:
        given = {"column": self.prompts.column, "template": self.prompts.template, "chat": self.prompts.chat or None}
        for name, value in given.items():
            if value is not None:
                raise OptionError(f"{self.source.path} holds OpenAI's requests, which need no --{name}: leave it out.")
        if is_table(self.out):
            raise OptionError(f"OpenAI's responses are JSON lines: call the output {self.out.stem}.jsonl.")

    def _table(self, columns: Sequence[str], several: bool) -> TableRecords:
        possible = TABLE_DELIMITERS[self.out.suffix.lower()]
        delimiter = self.source.format.delimiter
        return TableRecords(columns, delimiter if delimiter in possible else possible[0], several)

    def _opened(
        self, generator: TextGenerator, options: GenerationOptions, survey: Survey, batch: OpenAIBatch | None
    ) -> tuple[OutputFile | OutputStream, RecordFormat]:
        format: RecordFormat = answer_lines() if batch is None else response_lines(batch)
        if is_table(self.out):
            format = self._table(self.source.columns() or survey.keys, several=options.num_return_sequences > 1)
        if is_stream(self.out):
            return OutputStream(self.out, format), format
        output = OutputFile(self.out, format, self.overwrite)
        try:
            settings = {**self._settings(), **model_settings(generator, options)}
            check_or_write(self.out, settings, begun=output.written > 0)
        except BaseException:
            output.close()
            raise
        return output, format

    def _settings(self) -> dict[str, Any]:
        source, prompts = self.source, self.prompts
        reading = {"input": file_sha256(source.path), "format": source.format.name, "encoding": source.encoding}
        asking = {"column": prompts.column, "template": prompts.template, "chat": prompts.chat}
        return {**reading, "delimiter": source.format.delimiter, **asking, "batch_size": self.batch_size}


def collected(outcomes: Iterator[Found]) -> Iterator[list[Found]]:
    """Outcomes in lists that are worth a write to the disk: of WRITE_ROWS rows, or of WRITE_SECONDS."""
    part: list[Found] = []
    since = time.monotonic()
    for each in outcomes:
        part.append(each)
        if len(part) >= WRITE_ROWS or time.monotonic() - since >= WRITE_SECONDS:
            yield part
            part, since = [], time.monotonic()
    if part:
        yield part


@dataclass(frozen=True)
class Survey:
    """What is known of all rows before the first one runs.

    Attributes:
        rows: how many there are.
        keys: all keys of their objects.
    """

    rows: int
    keys: list[str]

    @classmethod
    def of(cls, rows: Iterable[Row], is_batch: bool) -> Survey:
        """Read all rows. Raises InputError for two requests of one batch that have the same `custom_id`."""
        count, keys, numbers = 0, dict[str, None](), dict[str, int]()
        for row in rows:
            count += 1
            value = row.value if isinstance(row.value, dict) else {}
            keys.update(dict.fromkeys(value))
            custom_id = value.get("custom_id")
            if is_batch and isinstance(custom_id, str) and numbers.setdefault(custom_id, count) != count:
                raise InputError(f"The rows {numbers[custom_id]} and {count} have the custom_id {custom_id!r:.80}.")
        return cls(count, list(keys))


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

    def count(self, rows: int, errors: int, tokens: int) -> None:
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
