"""A conversation with a loaded model: its messages and options, without any terminal."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.text.prompts import Message, known_format, render

if TYPE_CHECKING:
    from modelscope_polylm.backends.base import Completion
    from modelscope_polylm.generator import TextGenerator
    from modelscope_polylm.inputs import Prompt

SHARE_FOR_ANSWER = 4
"""An answer may take this part of the context where nothing else is said; the rest keeps the conversation."""


@dataclass(frozen=True)
class Facts:
    """What is to be known of an answer.

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
        facts: of the last answer; None before it.
    """

    def __init__(self, generator: TextGenerator, settings: Mapping[str, Any] | None = None) -> None:
        """Start an empty conversation.

        Raises:
            OptionError: settings that cannot be.
            InputError: nothing tells how messages are written for the model.
        """
        self.generator = generator
        self._format = known_format(generator.snapshot.prompt_format)
        self.settings: dict[str, Any] = {}
        self.messages: list[Message] = []
        self.facts: Facts | None = None
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
        given = {name: value for name, value in self.settings.items() if value is not None}
        if "max_length" in given and "max_new_tokens" not in given:
            del defaults["max_new_tokens"]
        if given.get("do_sample") or "num_beams" in given:
            defaults.pop("num_beams", None)
        return self.generator.options({**defaults, **given})

    @property
    def knows_turns(self) -> bool:
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
        """Answer a question; yields the text as it comes and then keeps the turn.

        Closing the generator before its end stops the answer; what has come of it is kept. If nothing has, the question
        is not kept either.

        Raises:
            InputError: a question that is empty, too long, or forges a turn.
        """
        return self._ask(self.messages, question)

    def retry(self) -> Generator[str, None, None]:
        """Answer the last question again; the new answer takes the place of the old one. Raises InputError."""
        return self._ask(self.messages[:-2], self._last_question())

    def undo(self) -> str:
        """Take the last question and its answer back; returns the question. Raises InputError if there is none."""
        question = self._last_question()
        del self.messages[-2:]
        return question

    def clear(self) -> None:
        """Begin a new conversation with the same settings."""
        self.messages, self.facts = [], None

    def _last_question(self) -> str:
        if not self.messages:
            raise InputError("Nothing has been asked yet.")
        return self.messages[-2]["content"]

    def _ask(self, history: list[Message], question: str) -> Generator[str, None, None]:
        options = self.options
        messages = [*(history if self.knows_turns else []), Message(role="user", content=question)]
        prompt = self.generator.reader.read({"messages": messages}, options)
        return self._answer(history, question, prompt, options)

    def _answer(
        self, history: list[Message], question: str, prompt: Prompt, options: GenerationOptions
    ) -> Generator[str, None, None]:
        start = time.perf_counter()
        text, completion = "", None
        deltas = self.generator.stream([prompt], options)
        try:
            for delta in deltas:
                text += delta.text
                completion = delta.result.completions[0] if delta.result else None
                if delta.text:
                    yield delta.text
        finally:
            deltas.close()
            if text or completion is not None:
                turn = [Message(role="user", content=question), Message(role="assistant", content=text)]
                self.messages = [*history, *turn]
                self.facts = self._facts_of(prompt, text, completion, time.perf_counter() - start)

    def _facts_of(self, prompt: Prompt, text: str, completion: Completion | None, seconds: float) -> Facts:
        snapshot = self.generator.snapshot
        tokens = len(snapshot.tokenizer.encode(text)) if completion is None else len(completion.ids)
        used = len(prompt.ids) + tokens
        left = max(snapshot.config.max_positions - used, 0)
        reason = "stopped" if completion is None else completion.finish_reason
        return Facts(tokens, seconds, used, left, reason, self._turns_left_out(prompt))

    def _turns_left_out(self, prompt: Prompt) -> int:
        messages, prompt_format = prompt.messages or [], self._format
        starts = range(0, len(messages), 2)
        return next((start // 2 for start in starts if render(messages[start:], prompt_format) == prompt.text), 0)
