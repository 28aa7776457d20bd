"""The chat of the web app without its surface: conversations in, what the page shows out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.app.web_answers import explain
from modelscope_polylm.app.web_options import read_values
from modelscope_polylm.text.messages import ASSISTANT, USER, Message

if TYPE_CHECKING:
    from modelscope_polylm.app.web_answers import Answers
    from modelscope_polylm.generator import Prompt, Reply


WAITING = "waiting for the answer"


@dataclass
class StopSign:
    """Raised by the user to end the answer that is being written."""

    raised: bool = False


@dataclass(frozen=True)
class ChatView:
    """What the page shows of a conversation.

    Attributes:
        messages: user and assistant in turn; a last answer may still grow, or be empty.
        busy: whether more is to come.
        status: one line about the answer.
        draft: the text in the message box; None leaves it as it is.
        problem: why there is no answer.
    """

    messages: list[Message]
    busy: bool = False
    status: str = ""
    draft: str | None = None
    problem: str | None = None


class Chat:
    """Continues conversations with one model. It keeps none of them."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._generator = answers.generator

    def send(
        self, text: str, messages: Sequence[Message], values: Sequence[Any], stop_sign: StopSign
    ) -> Iterator[ChatView]:
        """Add a user's message and yield the conversation while the answer grows.

        Args:
            text: the message.
            messages: the conversation before it.
            values: the page's options, in the order of `web_options.shown_fields`.
            stop_sign: ends the answer when it is raised; what has come of it stays.
        """
        if not text.strip():
            yield ChatView(list(messages), status="Write a message first.")
            return
        yield ChatView(_turn(messages, text), busy=True, status=WAITING, draft="")
        try:
            yield from self._answer(messages, text, values, stop_sign)
        except Exception as error:
            yield ChatView(list(messages), draft=text, problem=explain(error))

    def retry(self, messages: Sequence[Message], values: Sequence[Any], stop_sign: StopSign) -> Iterator[ChatView]:
        """Answer the last message anew; the old answer stays if that fails."""
        if not messages:
            yield ChatView([], status="There is nothing to answer again.")
            return
        earlier, text = messages[:-2], messages[-2]["content"]
        yield ChatView(_turn(earlier, text), busy=True, status=WAITING)
        try:
            yield from self._answer(earlier, text, values, stop_sign)
        except Exception as error:
            yield ChatView(list(messages), problem=explain(error))

    def undo(self, messages: Sequence[Message]) -> ChatView:
        """Take the last message and its answer back; the message returns to the message box."""
        if not messages:
            return ChatView([], status="There is nothing to take back.")
        return ChatView(list(messages[:-2]), draft=messages[-2]["content"])

    def _answer(
        self, earlier: Sequence[Message], text: str, values: Sequence[Any], stop_sign: StopSign
    ) -> Iterator[ChatView]:
        start, stop_sign.raised = time.perf_counter(), False
        options = self._generator.options({**read_values(values), "num_return_sequences": 1})
        question = Message(role=USER, content=text)
        prompt = self._generator.reader.read({"messages": [*self._remembered(earlier), question]}, options)
        with contextlib.closing(self._answers.stream(prompt, options)) as stream:
            for progress in stream:
                messages, seconds = _turn(earlier, text, self._own_turn(progress.reply)), time.perf_counter() - start
                if progress.complete:
                    yield ChatView(messages, status=self._summary(prompt, progress.reply, seconds))
                elif stop_sign.raised:
                    yield ChatView(messages, status=f"Stopped after {seconds:.2f} s")
                    return
                else:
                    status = f"{seconds:.1f} s" if progress.reply else f"{WAITING}, {seconds:.1f} s"
                    yield ChatView(messages, busy=True, status=status)

    def _remembered(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The earlier messages that the model is given: none where it has no format for several turns."""
        return messages if self._generator.snapshot.prompt_format.earlier_turn is not None else []

    def _own_turn(self, reply: Reply | None) -> str:
        """The answer without turns that the model went on to write; sent back, their markers would be refused."""
        text = reply.texts[0] if reply else ""
        for marker in self._generator.snapshot.prompt_format.role_markers:
            text = text.partition(marker)[0]
        return text

    def _summary(self, prompt: Prompt, reply: Reply | None, seconds: float) -> str:
        tokens = len(reply.answers[0].ids) if reply else 0
        used = len(prompt.ids) + tokens
        context = self._generator.snapshot.config.positions
        return f"{tokens} tokens in {seconds:.2f} s · {used:,} of {context:,} tokens of the context used"


def _turn(earlier: Sequence[Message], text: str, answer: str = "") -> list[Message]:
    return [*earlier, Message(role=USER, content=text), Message(role=ASSISTANT, content=answer)]
