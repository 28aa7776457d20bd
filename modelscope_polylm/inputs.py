"""What a caller hands in -> prompts as token ids: a text, a row with a text, or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generation.options import GenerationOptions, option_fields
from modelscope_polylm.generation.requests import check_room
from modelscope_polylm.text.prompts import (
    ASSISTANT,
    USER,
    Message,
    PromptFormat,
    check_messages,
    fit_messages,
    join_turns,
    known_format,
    render,
)
from modelscope_polylm.text.tokenizer import PolyLMTokenizer, check_text

ROOM_FOR_ANSWER = 128  # tokens kept free for the answer where only max_length says how long both may be together
KEYS = ("text", "messages", "history", "id")
"""What an input that is a mapping may hold: a text, a conversation, or a text and the conversation before it; and an
id, by which data sets tell their rows apart."""


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
        prompt_format: how messages become one text; None where that is unknown, and only plain texts can be read.
        max_positions: tokens that the context holds.
    """

    tokenizer: PolyLMTokenizer
    prompt_format: PromptFormat | None
    max_positions: int

    def read(
        self,
        value: Any,
        options: GenerationOptions,
        chat: bool = False,
        allow_role_markers: bool | None = None,
        system_message: str = "refuse",
    ) -> Prompt:
        """Read one input and make sure that its answer has room.

        Args:
            value: a text, `{'text': text}`, `{'messages': [...]}`, a list of messages with 'role' and 'content', or
                `{'text': text, 'history': [...]}`, a text after messages or pairs of a question and its answer.
            options: say how many tokens the answer may take.
            chat: take a plain text as the message of a user.
            allow_role_markers: let contents hold the markers that begin a turn; None as in `check_messages`.
            system_message: what becomes of system messages, 'refuse' or 'prepend'; see `join_turns`.

        Raises:
            InputError: not one of these, empty, badly formed, or without room for the answer in the context.
            OptionError: the answer asked for would leave no room for any prompt.
        """
        limit = self._prompt_limit(options)
        messages = _messages(value, chat)
        if messages is None:
            text = _plain_text(value)
            return self._with_room(Prompt(text, self.tokenizer.encode(text)), options)
        prompt_format = known_format(self.prompt_format)
        turns = join_turns(messages, system_message) if isinstance(messages, (list, tuple)) else messages
        checked = check_messages(turns, allow_role_markers, prompt_format)
        kept = fit_messages(checked, prompt_format, self._count_tokens, limit)
        text = render(kept, prompt_format)
        return self._with_room(Prompt(text, self.tokenizer.encode(text), checked), options)

    def read_all(
        self, values: Sequence[Any], options: GenerationOptions, first: int = 0, **parameters: Any
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
            whole = min(options.max_length, self.max_positions)
            return whole - min(ROOM_FOR_ANSWER, whole // 2)
        wanted = options.new_tokens(0)
        if wanted >= self.max_positions:
            raise OptionError(
                f"max_new_tokens={wanted} leaves no room for a prompt: the context has {self.max_positions} tokens."
            )
        return self.max_positions - wanted

    def _with_room(self, prompt: Prompt, options: GenerationOptions) -> Prompt:
        if not prompt.ids:
            raise InputError(f"The prompt {prompt.text!r} is empty: there is nothing to continue. Give it some text.")
        check_room(len(prompt.ids), options, self.max_positions)
        return prompt


def is_conversation(value: Any) -> bool:
    """Whether an input is one conversation: a mapping with 'messages', or a list of mappings that all have a role."""
    if isinstance(value, Mapping):
        return value.get("messages") is not None
    return isinstance(value, list) and bool(value) and all(_is_message(item) for item in value)


def is_many(value: Any) -> bool:
    """Whether a value is several inputs: a list, tuple, array, series, generator, ..., but no conversation."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) and not is_conversation(value)


def as_list(values: Iterable[Any]) -> list[Any]:
    """The inputs of a collection, numbers and texts of arrays and series as Python's own."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _messages(value: Any, chat: bool) -> Any:
    """The conversation of an input; None for a plain text. Raises InputError for a key that would be dropped."""
    if not isinstance(value, Mapping):
        if is_conversation(value):
            return value
        return [{"role": USER, "content": _plain_text(value)}] if chat else None
    # a table of texts and conversations has a null where a row has the other one
    given = {name: part for name, part in value.items() if part is not None}
    if not any(name in given for name in ("text", "messages")):
        if "text" not in value and "messages" in value:
            return check_messages(value["messages"])
        return [{"role": USER, "content": _plain_text(value)}] if chat else None
    _check_keys(given)
    if "messages" in given:
        return given["messages"]
    if "history" in given or chat:
        return [*_history(given.get("history", ())), {"role": USER, "content": _plain_text(given)}]
    return None


def _check_keys(given: Mapping[Any, Any]) -> None:
    options = {field.name for field in option_fields()}
    for name in given:
        if name in KEYS:
            continue
        advice = (
            "give it to the call" if name in options else "an input has 'text', 'messages', or 'text' and 'history'"
        )
        raise InputError(f"The input has {str(name)!r:.80}, which would not be used: {advice}.")
    if other := [name for name in ("text", "history") if "messages" in given and name in given]:
        raise InputError(f"The input has both 'messages' and {other[0]!r}: put everything into 'messages'.")


def _history(history: Any) -> list[Any]:
    """Earlier messages; pairs of a question and its answer, as ModelScope's older pipelines have them, become two."""
    if isinstance(history, (str, bytes, Mapping)) or not isinstance(history, Iterable):
        raise InputError(f"history must be a list of messages or of pairs of question and answer, not {history!r:.80}.")
    messages: list[Any] = []
    for turn in history:
        if isinstance(turn, (list, tuple)) and len(turn) == 2:
            messages += [{"role": USER, "content": turn[0]}, {"role": ASSISTANT, "content": turn[1]}]
        else:
            messages.append(turn)
    return messages


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item


def _plain_text(value: Any) -> str:
    """The text of an input that is no conversation: the input itself, or its 'text'. Raises InputError."""
    if isinstance(value, Mapping) and "text" not in value:
        raise InputError(f"A row needs 'text' or 'messages', but this one has the keys {sorted(map(str, value))}.")
    text = value["text"] if isinstance(value, Mapping) else value
    check_text(text)
    return str(text)
