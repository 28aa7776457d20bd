"""Requests that run together, in a thread of their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from modelscope_polylm.errors import DeviceError, PolyLMError
from modelscope_polylm.serve.errors import UnexpectedError
from modelscope_polylm.serve.jobs import Choice, Job
from modelscope_polylm.serve.rows import Change, rows_of, whole_choices

if TYPE_CHECKING:
    from modelscope_polylm.backends.base import Answer
    from modelscope_polylm.generator import TextGenerator

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """What a batch tells; its methods are called in the batch's thread."""

    def step(self, jobs: Sequence[Job], changes: Sequence[Change]) -> None:
        """A step of the engine is done."""

    def complete(self, job: Job, choices: list[Choice], generated: int) -> None:
        """All answers of a job are complete."""

    def failed(self, job: Job, error: BaseException) -> None:
        """A job cannot be answered."""


class Batch:
    """Jobs with equal options that one call of the engine answers.

    A job that nobody waits for any more gets no further work on its texts, and the engine is stopped at its next step
    when no job is left.

    Args:
        generator: the loaded model.
        jobs: at least one.
        listener: gets the news.
    """

    def __init__(self, generator: TextGenerator, jobs: Sequence[Job], listener: Listener) -> None:
        self.jobs = jobs
        self._generator, self._listener = generator, listener
        self._has_begun = False

    @property
    def rows(self) -> int:
        """Rows whose answers somebody still waits for."""
        return sum(job.work.rows for job in self.jobs if job.is_open)

    def run(self) -> None:
        """Answer all jobs."""
        self._run(self.jobs)

    def _run(self, jobs: Sequence[Job]) -> None:
        try:
            self._generate(jobs)
        except DeviceError as error:
            if len(jobs) == 1 or self._has_begun:
                self._fail(jobs, error)
                return
            middle = len(jobs) // 2  # what is too much for the device together may fit in parts
            self._run(jobs[:middle])
            self._run(jobs[middle:])
        except PolyLMError as error:
            self._fail(jobs, error)
        except BaseException:
            logger.exception("A batch failed.")
            self._fail(jobs, UnexpectedError())

    def _fail(self, jobs: Sequence[Job], error: BaseException) -> None:
        for job in jobs:
            self._listener.failed(job, error)

    def _generate(self, jobs: Sequence[Job]) -> None:
        self._has_begun = False
        rows = rows_of(jobs, self._generator.snapshot.tokenizer)
        prompts = [prompt.ids for job in jobs for prompt in job.work.prompts]
        updates = self._generator.backend.stream(prompts, jobs[0].work.options)
        try:
            while any(job.is_open for job in jobs):
                update = next(updates)
                self._has_begun = True
                # an update without any token tells nothing of single rows
                news = (row.take(ids) for row, ids in zip(rows, update, strict=False)) if any(update) else ()
                self._listener.step(jobs, [change for change in news if change is not None])
        except StopIteration as finished:
            self._deliver(jobs, finished.value)
        finally:
            updates.close()

    def _deliver(self, jobs: Sequence[Job], answers: Sequence[Sequence[Answer]]) -> None:
        tokenizer, first = self._generator.snapshot.tokenizer, 0
        for job in jobs:
            own = answers[first : first + len(job.work.prompts)]
            first += len(own)
            if job.is_open:
                generated = sum(len(answer.ids) for group in own for answer in group)
                self._listener.complete(job, whole_choices(job.work, own, tokenizer), generated)
