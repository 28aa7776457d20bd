"""What a caller hands in -> prompts as token ids: a text, a row with a text, or a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.errors import ContextLengthError, InputError, OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.text.prompts import Message, PromptFormat, check_messages, fit_messages, render
from modelscope_polylm.text.tokenizer import PolyLMTokenizer, check_text

ROOM_FOR_ANSWER = 128  # tokens kept free for the answer where only max_length says how long both may be together


@dataclass(frozen=True)
class Prompt:
    """One prompt, read and checked.

    Attributes:
        text: what the model continues.
        ids: its token ids, at least one.
        messages: the whole conversation that the text was made of; None where a plain text was given.
    """

    text: str
    ids: list[int]
    messages: list[Message] | None = None


@dataclass(frozen=True)
class InputReader:
    """Reads inputs for one snapshot.

    Attributes:
        tokenizer: makes the token ids.
        prompt_format: how messages become one text.
        positions: tokens that the context holds.
    """

    tokenizer: PolyLMTokenizer
    prompt_format: PromptFormat
    positions: int

    def read(
        self, value: Any, options: GenerationOptions, chat: bool = False, allow_role_markers: bool = False
    ) -> Prompt:
        """Read one input and make sure that its answer has room.

        Args:
            value: a text, `{'text': text}`, `{'messages': [...]}`, or a list of messages with 'role' and 'content'.
            options: say how many tokens the answer may take.
            chat: take a plain text as the message of a user.
            allow_role_markers: let contents hold the markers that begin a turn.

        Raises:
            InputError: not one of these, empty, badly formed, or without room for the answer in the context.
            OptionError: the answer asked for would not fit behind any prompt.
        """
        limit = self._prompt_limit(options)
        if is_conversation(value):
            messages = value["messages"] if isinstance(value, Mapping) else value
        elif chat:
            messages = [{"role": "user", "content": plain_text(value)}]
        else:
            text = plain_text(value)
            return self._with_room(Prompt(text, self.tokenizer.encode(text)), options)
        checked = check_messages(messages, allow_role_markers, self.prompt_format)
        kept = fit_messages(checked, self.prompt_format, self._count_tokens, limit)
        text = render(kept, self.prompt_format)
        return self._with_room(Prompt(text, self.tokenizer.encode(text), checked), options)

    def read_all(
        self, values: Sequence[Any], options: GenerationOptions, first: int = 0, **parameters: bool
    ) -> list[Prompt]:
        """Read several inputs; an error says which one it is about, counting from `first`."""
        prompts = []
        for index, value in enumerate(values, start=first):
            try:
                prompts.append(self.read(value, options, **parameters))
            except (InputError, OptionError) as error:
                raise type(error)(f"Input {index}: {error}") from error
        return prompts

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def _prompt_limit(self, options: GenerationOptions) -> int:
        """Most tokens that a conversation's prompt may have."""
        if options.max_new_tokens is None and options.max_length is not None:
            whole = min(options.max_length, self.positions)
            return whole - min(ROOM_FOR_ANSWER, whole // 2)
        wanted = options.new_tokens(0)
        if wanted >= self.positions:
            raise OptionError(
                f"max_new_tokens={wanted} leaves no room for a prompt: the context has {self.positions} tokens."
            )
        return self.positions - wanted

    def _with_room(self, prompt: Prompt, options: GenerationOptions) -> Prompt:
        length = len(prompt.ids)
        if length == 0:
            raise InputError(f"The prompt {prompt.text!r} is empty: there is nothing to continue. Give it some text.")
        if length >= self.positions:
            raise ContextLengthError(
                f"The prompt has {length} tokens, but the context holds {self.positions}, answer included: shorten it."
            )
        wanted = options.new_tokens(length)
        if wanted < 1:
            raise ContextLengthError(
                f"The prompt has {length} tokens, so max_length={options.max_length} leaves nothing for an answer: "
                "shorten it, raise max_length, or give max_new_tokens instead."
            )
        if wanted > self.positions - length:
            raise ContextLengthError(
                f"The prompt has {length} tokens, and with {wanted} new ones it does not fit the context of "
                f"{self.positions}: shorten it, or set max_new_tokens to at most {self.positions - length}."
            )
        return prompt


def is_conversation(value: Any) -> bool:
    """Whether an input is one conversation: a dict with 'messages', or a list of dicts that all have a role."""
    if isinstance(value, Mapping):
        return "messages" in value
    return isinstance(value, list) and bool(value) and all(_is_message(item) for item in value)


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item


def plain_text(value: Any) -> str:
    """The text of an input that is no conversation: the input itself, or its 'text'. Raises InputError."""
    if isinstance(value, Mapping) and "text" not in value:
        raise InputError(f"A row needs 'text' or 'messages', but this one has the keys {sorted(map(str, value))}.")
    text = value["text"] if isinstance(value, Mapping) else value
    check_text(text)
    return str(text)
