"""Answers that are computed in threads of their own, so that a page can show them, leave them and come back."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscope_polylm.errors import DeviceError, PolyLMError
from modelscope_polylm.generator import GenerationResult

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import TextGenerator
    from modelscope_polylm.inputs import Prompt

logger = logging.getLogger(__name__)

BETWEEN_UPDATES = 0.05
"""Seconds between two updates; tokens that come faster are shown together."""
MOST_SECONDS = 0.25
"""Seconds after which there is an update even if nothing is new, so that the caller can go away."""


@dataclass(frozen=True)
class Progress:
    """What is known of an answer.

    Attributes:
        result: the answer so far; None while nothing is known.
        complete: whether the answer is complete.
    """

    result: GenerationResult | None = None
    complete: bool = False


class _Waiting:
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
        self._queue: queue.Queue[_Waiting] = queue.Queue(waiting)
        for _ in range(at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Generator[Progress, None, None]:
        """Yield the progress of an answer, the complete answer last; while nothing is new, the same again.

        Closing it stops the answer with the next step.

        Raises:
            PolyLMError: too many answers are waiting, or what the generator raises.
        """
        waiting = _Waiting(prompt, options)
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise DeviceError(
                f"{self._queue.maxsize} others are waiting for an answer already: try again later."
            ) from None
        progress = Progress()
        try:
            while not progress.complete:
                progress = _newest(waiting.updates, progress)
                yield progress
                time.sleep(0 if progress.complete else BETWEEN_UPDATES)
        finally:
            waiting.stopped.set()

    def _work(self) -> None:
        while True:
            waiting = self._queue.get()
            try:
                if not waiting.stopped.is_set():
                    self._answer(waiting)
            except BaseException as error:
                waiting.updates.put(error)

    def _answer(self, waiting: _Waiting) -> None:
        head, text = self.generator.prompt_text(waiting.prompt), ""
        with contextlib.closing(self.generator.stream([waiting.prompt], waiting.options)) as deltas:
            for delta in deltas:
                text += delta.text
                result = delta.result or (GenerationResult(head, [text], ()) if text else None)
                waiting.updates.put(Progress(result, complete=delta.result is not None))
                if waiting.stopped.is_set():
                    return


def _newest(updates: queue.SimpleQueue[Progress | BaseException], known: Progress) -> Progress:
    """Wait for an update, but not long; skip to the newest. Raises what the answering thread raised."""
    try:
        item: Progress | BaseException = updates.get(timeout=MOST_SECONDS)
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
