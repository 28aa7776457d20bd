"""Answers that are computed in threads of their own, so that a page can show them, leave them and come back."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from modelscope_polylm.errors import DeviceError, PolyLMError
from modelscope_polylm.generator import TextDelta

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import TextGenerator
    from modelscope_polylm.inputs import Prompt

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.05
"""Between two updates; tokens that come faster are shown together."""
IDLE_SECONDS = 0.25
"""After this time there is an update even if nothing is new, so that the caller can go away."""


class _Waiting:
    """A prompt that waits for its answer or is being answered."""

    def __init__(self, prompt: Prompt, options: GenerationOptions) -> None:
        self.prompt, self.options = prompt, options
        self.updates: queue.SimpleQueue[TextDelta | BaseException] = queue.SimpleQueue()
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
        self._waiting: queue.Queue[_Waiting] = queue.Queue(waiting)
        for _ in range(at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Generator[TextDelta | None, None, None]:
        """Yield what is new of an answer, None while nothing is; the last delta has the result.

        Closing it stops the answer with the next step.

        Raises:
            PolyLMError: too many answers are waiting, or what the generator raises.
        """
        waiting = _Waiting(prompt, options)
        try:
            self._waiting.put_nowait(waiting)
        except queue.Full:
            raise DeviceError(
                f"{self._waiting.maxsize} others are waiting for an answer already: try again later."
            ) from None
        try:
            while (delta := _newest(waiting.updates)) is None or delta.result is None:
                yield delta
                time.sleep(UPDATE_SECONDS)
            yield delta
        finally:
            waiting.stopped.set()

    def _work(self) -> None:
        while True:
            waiting = self._waiting.get()
            try:
                if not waiting.stopped.is_set():
                    self._answer(waiting)
            except BaseException as error:
                waiting.updates.put(error)

    def _answer(self, waiting: _Waiting) -> None:
        with contextlib.closing(self.generator.stream([waiting.prompt], waiting.options)) as deltas:
            for delta in deltas:
                waiting.updates.put(delta)
                if waiting.stopped.is_set():
                    return


def _newest(updates: queue.SimpleQueue[TextDelta | BaseException]) -> TextDelta | None:
    """Wait a little for updates and join those that are there. Raises what the answering thread raised."""
    found: list[TextDelta] = []
    try:
        item = updates.get(timeout=IDLE_SECONDS)
        while True:
            if isinstance(item, BaseException):
                raise item
            found.append(item)
            item = updates.get_nowait()
    except queue.Empty:
        return TextDelta(0, "".join(delta.text for delta in found), found[-1].result) if found else None


def explain(error: Exception) -> str:
    """What to tell the user; an error that is not meant for people goes to the log."""
    if isinstance(error, PolyLMError):
        return str(error)
    logger.exception("An answer failed.", exc_info=error)
    return "Something went wrong on the server, and its log tells what. Try again, or with other options."
