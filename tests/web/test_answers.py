"""Answers for the web app: they grow, wait for their turn, end when they are left, and fail for one caller alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from modelscope_polylm.errors import DeviceError, OptionError
from modelscope_polylm.generator import GenerationResult, TextDelta
from modelscope_polylm.inputs import Prompt
from modelscope_polylm.web import answers as module
from modelscope_polylm.web.answers import Answers, explain
from modelscope_polylm.web.words import Words

PROMPT = Prompt("?", [5])


class SlowGenerator:
    """Answers letter by letter, and counts the answers that it works on at the same time."""

    def __init__(self, pause: float = 0.01, letters: int = 10, error: Exception | None = None) -> None:
        self.pause, self.letters, self.error = pause, letters, error
        self.now = self.most = self.ended = 0
        self._lock = threading.Lock()

    def stream(self, prompts: Sequence[Prompt], options: Any) -> Generator[TextDelta, None, None]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if self.error:
                raise self.error
            for count in range(1, self.letters + 1):
                time.sleep(self.pause)
                yield TextDelta(0, "x", self.result() if count == self.letters else None)
        finally:
            with self._lock:
                self.now -= 1
                self.ended += 1

    def result(self) -> GenerationResult:
        completion: Any = SimpleNamespace(ids=[1] * self.letters, score=None)
        return GenerationResult("", ["x" * self.letters], [completion])


def answers_of(generator: Any, **limits: int) -> Answers:
    return Answers(generator, **limits)


def soon(condition: Callable[[], bool]) -> bool:
    """Whether something becomes true within seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_an_answer_grows_until_it_is_complete() -> None:
    seen = list(answers_of(SlowGenerator(pause=0.03)).stream(PROMPT, None))
    texts = [delta.text for delta in seen if delta is not None]
    assert "".join(texts) == "x" * 10
    assert len(texts) > 2
    assert [delta is not None and delta.result is not None for delta in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].result.completions[0].ids == [1] * 10


def test_a_closed_answer_is_not_worked_on() -> None:
    generator = SlowGenerator(letters=100_000)
    stream = answers_of(generator).stream(PROMPT, None)
    next(stream)
    stream.close()
    assert soon(lambda: generator.ended == 1)


@pytest.mark.parametrize("at_once", [1, 3])
def test_answers_wait_for_their_turn(at_once: int) -> None:
    generator = SlowGenerator()
    answers = answers_of(generator, at_once=at_once)
    threads = [threading.Thread(target=lambda: list(answers.stream(PROMPT, None))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (generator.ended, generator.most) == (6, at_once)


def test_too_many_waiting_answers_are_refused() -> None:
    generator = SlowGenerator(letters=100_000)
    answers = answers_of(generator, waiting=1)
    running, waiting = answers.stream(PROMPT, None), answers.stream(PROMPT, None)
    next(running)
    assert soon(lambda: generator.now == 1)
    assert next(waiting) is None
    with pytest.raises(DeviceError, match="1 others are waiting"):
        next(answers.stream(PROMPT, None))
    waiting.close()
    running.close()
    assert soon(lambda: generator.now == 0)
    with contextlib.closing(answers.stream(PROMPT, None)) as stream:
        assert any(next(stream) is not None for _ in range(20))


def test_an_answer_with_a_name_is_found_again_from_its_beginning() -> None:
    generator = SlowGenerator()
    answers = answers_of(generator)
    with contextlib.closing(answers.stream(PROMPT, None, "a")) as stream:
        assert any(next(stream) is not None for _ in range(20))
    texts = [delta.text for delta in answers.stream(PROMPT, None, "a") if delta is not None]
    assert "".join(texts) == "x" * 10
    assert generator.ended == 1
    assert "".join(delta.text for delta in answers.stream(PROMPT, None, "b") if delta is not None) == "x" * 10
    assert generator.ended == 2


def test_a_named_answer_ends_when_nobody_comes_back_or_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_SECONDS", 0.3)
    generator = SlowGenerator(letters=100_000)
    answers = answers_of(generator)
    for count, stop in enumerate((False, True), 1):
        stream = answers.stream(PROMPT, None, "a")
        next(stream)
        if stop:
            answers.stop("a")
        else:
            stream.close()
        assert soon(lambda count=count: generator.ended == count)
        stream.close()
    answers.stop("nobody")


def test_places_in_the_queue() -> None:
    answers = answers_of(SlowGenerator(letters=100_000))
    streams = [answers.stream(PROMPT, None, name) for name in "abc"]
    for stream in streams:
        next(stream)
    assert [answers.place(name) for name in "abcd"] == [0, 1, 2, 0]
    answers.stop("b")
    assert answers.place("c") == 1
    answers.stop("a")
    assert soon(lambda: answers.place("c") == 0)
    answers.stop("c")


def test_an_error_reaches_the_caller_and_the_next_answer_works() -> None:
    generator = SlowGenerator(error=DeviceError("too small"))
    answers = answers_of(generator)
    with pytest.raises(DeviceError, match="too small"):
        list(answers.stream(PROMPT, None))
    generator.error = None
    assert list(answers.stream(PROMPT, None))[-1].result is not None


def test_errors_for_people_and_others(caplog: pytest.LogCaptureFixture) -> None:
    assert explain(OptionError("top_p=3 must be at most 1."), Words("zh")) == "top_p=3 must be at most 1."
    assert explain(RuntimeError("secret"), Words("zh")) == "服务器出了问题，详情见其日志。请重试，或换用别的选项。"
    assert "secret" in caplog.text
