"""Answers that are computed in threads of their own, so that a page can show them, leave them and come back."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscope_polylm.errors import DeviceError, PolyLMError

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import Prompt, Reply, TextGenerator

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.05
"""Between two updates; tokens that come faster are shown together."""
IDLE_SECONDS = 0.25
"""After this time there is an update even if nothing is new, so that the caller can go away."""


@dataclass(frozen=True)
class Progress:
    """What is known of an answer.

    Attributes:
        reply: the reply so far; None while nothing is known.
        complete: whether the reply is the last.
    """

    reply: Reply | None = None
    complete: bool = False


class _Job:
    """A prompt that waits for its answer or is being answered."""

    def __init__(self, prompt: Prompt, options: GenerationOptions) -> None:
        self.prompt, self.options = prompt, options
        self.updates: queue.SimpleQueue[Progress | BaseException] = queue.SimpleQueue()
        self.stopped = threading.Event()


class Answers:
    """Answers prompts with one generator, a few of them at a time and the others in turn; for several threads.

    Args:
        generator: the loaded model.
        at_once: answers that are computed at the same time.
        waiting: answers that may wait for their turn.
    """

    def __init__(self, generator: TextGenerator, at_once: int = 1, waiting: int = 32) -> None:
        self.generator = generator
        self._jobs: queue.Queue[_Job] = queue.Queue(waiting)
        for _ in range(at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Generator[Progress, None, None]:
        """Yield the progress of an answer, the complete reply last; while nothing is new, the same again.

        Closing it stops the answer with the next step.

        Raises:
            PolyLMError: too many answers are waiting, or what the generator raises.
        """
        job = _Job(prompt, options)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise DeviceError(
                f"{self._jobs.maxsize} others are waiting for an answer already: try again later."
            ) from None
        progress = Progress()
        try:
            while not progress.complete:
                progress = _newest(job.updates, progress)
                yield progress
                time.sleep(0 if progress.complete else UPDATE_SECONDS)
        finally:
            job.stopped.set()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if not job.stopped.is_set():
                    self._answer(job)
            except BaseException as error:
                job.updates.put(error)

    def _answer(self, job: _Job) -> None:
        stream = self.generator.stream([job.prompt], job.options)
        try:
            while not job.stopped.is_set():
                job.updates.put(Progress(next(stream)[0]))
        except StopIteration as finished:
            job.updates.put(Progress(finished.value[0], complete=True))
        finally:
            stream.close()


def _newest(updates: queue.SimpleQueue[Progress | BaseException], known: Progress) -> Progress:
    """Wait a little for an update, and skip to the newest one. Raises what the answering thread raised."""
    try:
        item: Progress | BaseException = updates.get(timeout=IDLE_SECONDS)
        while not updates.empty():
            item = updates.get()
    except queue.Empty:
        return known
    if isinstance(item, BaseException):
        raise item
    return item


def explain(error: Exception) -> str:
    """What to tell the user; an error that is not meant for people goes to the log."""
    if isinstance(error, PolyLMError):
        return str(error)
    logger.exception("An answer failed.", exc_info=error)
    return "Something went wrong on the server, and its log tells what. Try again, or with other options."
