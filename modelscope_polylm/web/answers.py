"""Answers computed in threads of their own, so that a page can show them, leave them and come back; their status."""

from __future__ import annotations

import contextlib
import html
import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscope_polylm.errors import DeviceError, PolyLMError
from modelscope_polylm.generator import TextDelta
from modelscope_polylm.web.words import Words

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import GenerationResult, TextGenerator
    from modelscope_polylm.inputs import Prompt

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.05
"""Between two updates; tokens that come faster are shown together."""
IDLE_SECONDS = 0.25
"""After this time there is an update even if nothing is new, so that the caller can go away."""
KEPT_SECONDS = 10.0
"""How long an answer with a name waits for its caller to come back."""

Requests = Sequence[tuple["Prompt", "GenerationOptions"]]


class _Answer:
    """Prompts that wait for their answers or are being answered together; what came stays, to be read again."""

    def __init__(self, requests: Requests) -> None:
        self.prompts = [prompt for prompt, _ in requests]
        self.options = [options for _, options in requests]
        self.stopped, self.started = threading.Event(), threading.Event()
        self.readers, self.left = 1, time.monotonic()
        self._deltas: list[TextDelta] = []
        self._error: BaseException | None = None
        self._news = threading.Condition()

    @property
    def is_given_up(self) -> bool:
        """Whether it was stopped, or its caller did not come back; one that has not started is not kept."""
        kept = KEPT_SECONDS if self.started.is_set() else 0.0
        return self.stopped.is_set() or (self.readers == 0 and time.monotonic() - self.left >= kept)

    def add(self, item: TextDelta | BaseException) -> None:
        with self._news:
            if isinstance(item, BaseException):
                self._error = item
            else:
                self._deltas.append(item)
            self._news.notify_all()

    def after(self, position: int) -> list[TextDelta]:
        """Wait a little for what comes after the first `position` deltas. Raises what the answering thread raised."""
        with self._news:
            self._news.wait_for(lambda: self._error is not None or len(self._deltas) > position, IDLE_SECONDS)
            if self._error is not None and len(self._deltas) == position:
                raise self._error
            return self._deltas[position:]


class Answers:
    """Answers prompts with one generator, a few of them at a time and the others in turn; for several threads.

    An answer may have a name, by which its caller finds it again after having gone away, for KEPT_SECONDS.

    Args:
        generator: the loaded model.
        at_once: answers that are computed at the same time.
        waiting: answers that may wait for their turn.
    """

    def __init__(self, generator: TextGenerator, at_once: int = 1, waiting: int = 32) -> None:
        self.generator = generator
        self._waiting: queue.Queue[_Answer] = queue.Queue(waiting)
        self._named: dict[str, _Answer] = {}
        for _ in range(at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def stream(
        self, prompt: Prompt, options: GenerationOptions, name: str = ""
    ) -> Generator[TextDelta | None, None, None]:
        """Yield what is new of an answer, None while nothing is; the last delta has the result.

        Closing it stops the answer with the next step, unless it has a name. Where an answer with this name is there,
        it is read from its beginning, and the prompt is not answered again.

        Raises:
            PolyLMError: too many answers are waiting, or what the generator raises.
        """
        position = 0
        with self._reading([(prompt, options)], name) as answer:
            while True:
                found = answer.after(position)
                position += len(found)
                result = found[-1].result if found else None
                yield TextDelta(0, "".join(delta.text for delta in found), result) if found else None
                if result is not None:
                    return
                time.sleep(UPDATE_SECONDS)

    def reply(self, requests: Requests, name: str = "") -> Generator[list[GenerationResult] | None, None, None]:
        """Answer several prompts together: yield None until all their results are there, and then these.

        Otherwise as `stream`.
        """
        position, found = 0, dict[int, "GenerationResult"]()
        with self._reading(requests, name) as answer:
            while len(found) < len(requests):
                deltas = answer.after(position)
                position += len(deltas)
                found |= {delta.prompt: delta.result for delta in deltas if delta.result is not None}
                yield None
            yield [found[index] for index in range(len(requests))]

    def stop(self, name: str) -> None:
        """Stop the answer with this name, if it is there, with the next step."""
        answer = self._named.pop(name, None)
        if answer is not None:
            answer.stopped.set()

    def place(self, name: str) -> int:
        """The place in the queue of the answer with this name, 1 for the next one; 0 if it does not wait."""
        with self._waiting.mutex:
            waiting = [each for each in self._waiting.queue if not each.is_given_up]
        answer = self._named.get(name)
        return waiting.index(answer) + 1 if answer in waiting else 0

    @contextlib.contextmanager
    def _reading(self, requests: Requests, name: str) -> Iterator[_Answer]:
        found = self._named.get(name)
        if found is None or found.is_given_up:
            answer = self._begun(requests, name)
        else:
            answer = found
            answer.readers += 1
        try:
            yield answer
        finally:
            answer.readers, answer.left = answer.readers - 1, time.monotonic()
            if not name:
                answer.stopped.set()

    def _begun(self, requests: Requests, name: str) -> _Answer:
        answer = _Answer(requests)
        with self._waiting.mutex:
            for each in [each for each in self._waiting.queue if each.is_given_up]:
                self._waiting.queue.remove(each)
        try:
            self._waiting.put_nowait(answer)
        except queue.Full:
            raise DeviceError(
                f"{self._waiting.maxsize} others are waiting for an answer already: try again later."
            ) from None
        self._named = {other: each for other, each in self._named.items() if not each.is_given_up}
        if name:
            self._named[name] = answer
        return answer

    def _work(self) -> None:
        while True:
            answer = self._waiting.get()
            try:
                if not answer.is_given_up:
                    answer.started.set()
                    self._compute(answer)
            except BaseException as error:
                answer.add(error)

    def _compute(self, answer: _Answer) -> None:
        with contextlib.closing(self.generator.stream(answer.prompts, answer.options)) as deltas:
            for delta in deltas:
                answer.add(delta)
                if answer.is_given_up:
                    return


@dataclass
class StopSign:
    """Ends the answer that is being written, as soon as it is raised."""

    raised: bool = False


def waiting_line(answers: Answers, name: str, words: Words) -> str:
    """How a line about an answer begins while it waits for its turn; empty if it does not."""
    place = answers.place(name)
    return f"{words('place {place} in the queue', place=place)}, " if place else ""


def explain(error: Exception, words: Words) -> str:
    """What to tell the user; an error that is not meant for people goes to the log."""
    if isinstance(error, PolyLMError):
        return str(error)
    logger.exception("An answer failed.", exc_info=error)
    return words("Something went wrong on the server, and its log tells what. Try again, or with other options.")


def status_line(text: str) -> str:
    """One line of HTML below a form, read out when it changes."""
    return f'<p class="status" role="status">{html.escape(text)}</p>'


def show_problem(text: str) -> None:
    """Tell the user why there is no answer, in a box that stays until it is closed."""
    import gradio

    gradio.Warning(html.escape(text), duration=None)
