"""Carries the news of a batch from its thread into the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from modelscope_polylm.serve.jobs import Choice, Job
from modelscope_polylm.serve.rows import Change

if TYPE_CHECKING:
    from modelscope_polylm.serve.metrics import Metrics
    from modelscope_polylm.serve.scheduler import Scheduler


class Delivery:
    """A `batch.Listener` that changes jobs in the event loop; one call into the loop for each step."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scheduler: Scheduler, metrics: Metrics) -> None:
        self._loop, self._scheduler, self._metrics = loop, scheduler, metrics

    def step(self, jobs: Sequence[Job], changes: Sequence[Change]) -> None:
        """See `Listener`."""
        if changes or not all(job.started for job in jobs):
            self._post(self._take_step, jobs, changes)

    def complete(self, job: Job, choices: list[Choice], generated: int) -> None:
        """See `Listener`."""
        self._post(self._take_choices, job, choices, generated)

    def failed(self, job: Job, error: BaseException) -> None:
        """See `Listener`."""
        self._post(self._take_error, job, error)

    def _post(self, action: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed when the server has been forced to end
            self._loop.call_soon_threadsafe(action, *arguments)

    def _take_step(self, jobs: Sequence[Job], changes: Sequence[Change]) -> None:
        for job in jobs:
            if not job.started:
                job.started = True
                job.notify()
        for job, index, text, tokens, finish_reason in changes:
            if job.is_open:
                choice = job.choices[index]
                choice.text += text
                choice.tokens += tokens
                choice.finish_reason = finish_reason
                self._count(job, tokens, bool(text))
                self._close_if_complete(job)

    def _take_choices(self, job: Job, choices: list[Choice], generated: int) -> None:
        if job.is_open:
            job.choices = choices
            self._count(job, max(generated - job.generated, 0), True)
            self._close_if_complete(job)

    def _take_error(self, job: Job, error: BaseException) -> None:
        if job.is_open:
            job.error = error
            self._scheduler.close(job)

    def _count(self, job: Job, tokens: int, has_text: bool) -> None:
        job.generated += tokens
        self._metrics.generated_tokens.inc(tokens)
        if has_text and job.first_text is None:
            job.first_text = time.monotonic()
            self._metrics.first_text_seconds.observe(job.first_text - job.arrived)
        job.notify()

    def _close_if_complete(self, job: Job) -> None:
        if all(choice.finish_reason is not None for choice in job.choices):
            job.started = True
            self._scheduler.close(job)
