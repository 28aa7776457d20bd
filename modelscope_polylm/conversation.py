"""A conversation with a loaded model: its messages, its settings and its answers, for a terminal and for a page."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.text.prompts import ASSISTANT, SYSTEM_ROLES, USER, Message, known_format, render

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextDelta, TextGenerator
    from modelscope_polylm.inputs import Prompt

SHARE_FOR_ANSWER = 4
"""An answer may take this part of the context where nothing else is said; the rest keeps the conversation."""

AnswerStream = Callable[["Prompt", GenerationOptions], Generator["TextDelta | None", None, None]]
"""Answers a prompt: yields what is new of the answer, or None where nothing is; the last delta has the result."""


@dataclass(frozen=True)
class TurnStats:
    """What an answer took, and how it ended.

    Attributes:
        tokens, seconds: of the answer, reading the prompt included.
        used, left: tokens of the context that prompt and answer take, and that are free for what follows.
        finish_reason: 'eos', 'length', 'stop', or 'stopped' where it was interrupted.
        turns_left_out: how many of the oldest turns did not fit the context any more.
    """

    tokens: int
    seconds: float
    used: int
    left: int
    finish_reason: str
    turns_left_out: int = 0


class Conversation:
    """Messages that grow by a question and an answer at a time.

    Attributes:
        generator: the loaded model.
        settings: generation options that differ from the chat's defaults.
        messages: user and assistant in turn; empty, or ending with an answer.
        system: a text that stands before the first message that the model reads.
        stats: of the last answer; None before it.
    """

    def __init__(
        self,
        generator: TextGenerator,
        settings: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
        stream: AnswerStream | None = None,
        system: str = "",
    ) -> None:
        """Begin a conversation, or go on with one.

        Args:
            generator: the loaded model.
            settings: generation options; None is not given.
            messages: of the conversation so far.
            stream: answers prompts where the generator's own stream is not meant.
            system: what the model is to know or do; PolyLM was not trained with system messages.

        Raises:
            OptionError: settings that cannot be.
            InputError: nothing tells how messages are written for the model.
        """
        self.generator = generator
        self._format = known_format(generator.snapshot.prompt_format)
        self._stream = stream or (lambda prompt, options: generator.stream([prompt], options))
        self.settings: dict[str, Any] = {}
        self.messages: list[Message] = list(messages)
        self.system = system
        self.stats: TurnStats | None = None
        self.change(settings or {})

    @property
    def options(self) -> GenerationOptions:
        """The options of the next answer: the settings over the chat's defaults over those of the snapshot.

        The chat's defaults: no beams, because beam search has nothing to show before its end, and a quarter of the
        context for an answer.
        """
        positions = self.generator.snapshot.config.max_positions
        defaults: dict[str, Any] = {"max_new_tokens": max(positions // SHARE_FOR_ANSWER, 1)}
        if not self.generator.snapshot.generation.get("do_sample"):
            defaults["num_beams"] = 1
        if "max_length" in self.settings and "max_new_tokens" not in self.settings:
            del defaults["max_new_tokens"]
        if self.settings.get("do_sample") or "num_beams" in self.settings:
            defaults.pop("num_beams", None)
        return self.generator.options({**defaults, **self.settings})

    @property
    def has_turns(self) -> bool:
        """Whether the model's prompt format has several turns; if not, every message is answered on its own."""
        return self._format.earlier_turn is not None

    def change(self, settings: Mapping[str, Any]) -> None:
        """Change settings, None takes one back; either all of them or none. Raises OptionError."""
        before = self.settings
        self.settings = {name: value for name, value in {**before, **settings}.items() if value is not None}
        try:
            if self.options.num_return_sequences > 1:
                raise OptionError("num_return_sequences: a chat shows one answer; use `polylm generate` for several.")
        except OptionError:
            self.settings = before
            raise

    def ask(self, question: str) -> Generator[str, None, None]:
        """Answer a question: yields new text as it comes, and then keeps the turn.

        A text may be empty, where the stream has nothing new. Closing the generator before its end stops the answer;
        what has come of it is kept. If nothing has, the question is not kept either.

        Raises:
            InputError: a question that is empty, too long, or forges a turn.
        """
        return self._ask(self.messages, question)

    def retry(self) -> Generator[str, None, None]:
        """Answer the last question again; the new answer replaces the old one. Raises InputError."""
        return self._ask(self.messages[:-2], self._last_question())

    def undo(self) -> str:
        """Take the last question and its answer back; returns the question. Raises InputError if there is none."""
        question = self._last_question()
        del self.messages[-2:]
        return question

    def clear(self) -> None:
        """Begin a new conversation with the same settings."""
        self.messages, self.stats = [], None

    def _last_question(self) -> str:
        if not self.messages:
            raise InputError("Nothing has been asked yet.")
        return self.messages[-2]["content"]

    def _ask(self, history: Sequence[Message], question: str) -> Generator[str, None, None]:
        options = self.options
        system = [Message(role=SYSTEM_ROLES[0], content=self.system)]
        messages = [*system, *(history if self.has_turns else []), Message(role=USER, content=question)]
        prompt = self.generator.reader.read({"messages": messages}, options, system_message="prepend")
        return self._answer(history, question, prompt, options)

    def _answer(
        self, history: Sequence[Message], question: str, prompt: Prompt, options: GenerationOptions
    ) -> Generator[str, None, None]:
        start, answer = time.perf_counter(), _Answer(self._format.role_markers)
        try:
            with contextlib.closing(self._stream(prompt, options)) as stream:
                for delta in stream:
                    yield answer.add(delta)
                    if answer.finish_reason is not None:
                        break
        finally:
            if answer.text or answer.finish_reason is not None:
                turn = [Message(role=USER, content=question), Message(role=ASSISTANT, content=answer.text)]
                self.messages = [*history, *turn]
                self.stats = self._stats(prompt, answer, time.perf_counter() - start)

    def _stats(self, prompt: Prompt, answer: _Answer, seconds: float) -> TurnStats:
        tokens = answer.tokens or len(self.generator.snapshot.tokenizer.encode(answer.text))
        used = len(prompt.ids) + tokens
        left = max(self.generator.snapshot.config.max_positions - used, 0)
        return TurnStats(tokens, seconds, used, left, answer.finish_reason or "stopped", self._turns_left_out(prompt))

    def _turns_left_out(self, prompt: Prompt) -> int:
        messages = prompt.messages or []
        starts = range(0, len(messages), 2)
        return next((start // 2 for start in starts if render(messages[start:], self._format) == prompt.text), 0)


class _Answer:
    """An answer while it grows, without turns that the model goes on to write: sent back, they would be refused.

    Attributes:
        text: what is certain of the answer; an end that may become a marker is not.
        finish_reason: why it ended; None before.
        tokens: of the complete answer; 0 where they are not known.
    """

    def __init__(self, markers: Sequence[str]) -> None:
        self.text, self.tokens = "", 0
        self.finish_reason: str | None = None
        self._markers, self._whole = markers, ""

    def add(self, delta: TextDelta | None) -> str:
        """Take what is new; returns what is new of the text."""
        if delta is None:
            return ""
        self._whole += delta.text
        known = len(self.text)
        ends = [self._whole.index(marker) for marker in self._markers if marker in self._whole]
        if ends:
            self.text, self.finish_reason = self._whole[: min(ends)], "stop"
        elif delta.result is not None:
            completion = delta.result.completions[0]
            self.text, self.finish_reason, self.tokens = self._whole, completion.finish_reason, len(completion.ids)
        else:
            self.text = self._whole[: len(self._whole) - self._begun_marker()]
        return self.text[known:]

    def _begun_marker(self) -> int:
        """How many characters at the end may begin a marker."""
        beginnings = (marker[:size] for marker in self._markers for size in range(1, len(marker)))
        return max((len(beginning) for beginning in beginnings if self._whole.endswith(beginning)), default=0)
