"""Which request runs when: a bounded queue, and batches of what has gathered in it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from modelscope_polylm.serve.batch import Batch
from modelscope_polylm.serve.delivery import Delivery
from modelscope_polylm.serve.errors import BusyError, EndingError
from modelscope_polylm.serve.jobs import Job, Work

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator
    from modelscope_polylm.serve.metrics import Metrics

PATIENCE = 0.01
"""Requests that have a place are put into a batch when nothing more has come for this share of an answer's time."""
SHORTEST_PATIENCE, LONGEST_PATIENCE = 0.005, 0.02
"""Its bounds in seconds."""
GATHERING = 5
"""After so many times of it they are, however many still come."""


class Scheduler:
    """Runs jobs in batches. Everything but the batches themselves happens in the event loop.

    Args:
        generator: the loaded model.
        metrics: are kept up to date.
        max_rows: rows of all running batches together whose clients still wait.
        max_batches: batches that run side by side.
        max_queue: requests that may wait while no place is free.
    """

    def __init__(
        self, generator: TextGenerator, metrics: Metrics, max_rows: int = 32, max_batches: int = 4, max_queue: int = 64
    ) -> None:
        self.max_rows, self._max_batches, self._max_queue = max_rows, max_batches, max_queue
        self.is_ending = False
        self._generator, self._metrics = generator, metrics
        self._waiting: deque[Job] = deque()
        self._batches: set[Batch] = set()
        self._threads = ThreadPoolExecutor(max_batches, thread_name_prefix="batch")
        self._timer: asyncio.TimerHandle | None = None
        self._gathering_since = 0.0
        self._recent_seconds = 1.0
        metrics.watch(lambda: len(self._waiting), lambda: self._running_rows, lambda: len(self._batches))

    @property
    def _running_rows(self) -> int:
        return sum(batch.rows for batch in self._batches)

    @property
    def _waiting_rows(self) -> int:
        return sum(job.work.rows for job in self._waiting)

    def submit(self, work: Work) -> Job:
        """A job for the work, which has to be left when nobody waits for it any more.

        Raises:
            BusyError: the queue is full.
            EndingError: the server is about to end.
        """
        if self.is_ending:
            raise EndingError("The server is shutting down: ask another one, or later.")
        job = Job(work)
        self._waiting.append(job)
        if self._without_place() > self._max_queue:
            self._waiting.pop()
            raise BusyError(
                f"{self._max_queue} requests are waiting already: try again later.", math.ceil(self._recent_seconds)
            )
        self._gather()
        return job

    def leave(self, job: Job) -> None:
        """Nobody waits for the job any more."""
        if job in self._waiting:
            self._waiting.remove(job)
        if job.is_open:
            self._metrics.cancelled.inc()
            self.close(job)

    def close(self, job: Job) -> None:
        """The job has ended; its rows are free."""
        job.is_open = False
        job.notify()
        if job.error is None and job.started:
            self._recent_seconds += (time.monotonic() - job.arrived - self._recent_seconds) / 8
        if self._waiting:
            self._gather()

    def end(self) -> None:
        """Refuse what waits and what comes from now on; what runs goes on."""
        self.is_ending = True
        for job in self._waiting:
            job.error = EndingError("The server is shutting down: ask another one, or later.")
            self.close(job)
        self._waiting.clear()

    def stop(self) -> None:
        """Stop what still runs, with its next step."""
        self.end()
        for batch in self._batches:
            for job in batch.jobs:
                job.is_open = False
        self._threads.shutdown(wait=False)

    def _without_place(self) -> int:
        """Jobs that wait for more than company: no place is free for them."""
        free = self.max_rows - self._running_rows if len(self._batches) < self._max_batches else 0
        rows = itertools.accumulate(job.work.rows for job in self._waiting)
        return sum(needed > free for needed in rows)

    def _gather(self) -> None:
        """Start what waits a little after the last call of this, so that requests that come together run together."""
        now, patience = time.monotonic(), self._patience
        if self._timer is None:
            self._gathering_since = now
        else:
            self._timer.cancel()
        wait = min(patience, self._gathering_since + GATHERING * patience - now)
        if self._running_rows + self._waiting_rows >= self.max_rows:
            wait = 0.0  # no place is left for company
        self._timer = asyncio.get_running_loop().call_later(wait, self._start)

    @property
    def _patience(self) -> float:
        return min(max(PATIENCE * self._recent_seconds, SHORTEST_PATIENCE), LONGEST_PATIENCE)

    def _start(self) -> None:
        self._timer = None
        while self._waiting and len(self._batches) < self._max_batches:
            jobs = self._next_jobs()
            if not jobs:
                return
            batch = Batch(self._generator, jobs, Delivery(asyncio.get_running_loop(), self, self._metrics))
            self._batches.add(batch)
            self._metrics.batch_rows.observe(batch.rows)
            for job in jobs:
                self._metrics.queue_seconds.observe(time.monotonic() - job.arrived)
            running = asyncio.get_running_loop().run_in_executor(self._threads, batch.run)
            running.add_done_callback(lambda _, batch=batch: self._ended(batch))  # type: ignore[misc]

    def _next_jobs(self) -> Sequence[Job]:
        """The first job and those that can share its batch, as many as there is room for; none if it has no room."""
        free, first, jobs = self.max_rows - self._running_rows, self._waiting[0], []
        for job in list(self._waiting):
            if job.work.rows > free or not (job is first or first.work.shares_batch_with(job.work)):
                if job is first:
                    break
                continue
            jobs.append(job)
            free -= job.work.rows
            self._waiting.remove(job)
        return jobs

    def _ended(self, batch: Batch) -> None:
        self._batches.discard(batch)
        if self._waiting:
            self._gather()
