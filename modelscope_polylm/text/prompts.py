"""Conversations checked, and the one text that a release was trained with; the formats are data."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from modelscope_polylm.errors import ContextLengthError, InputError

USER, ASSISTANT = "user", "assistant"
SYSTEM_ROLES = ("system", "developer")
"""Roles that PolyLM was not trained with; clients of OpenAI's interface send them, the second one the newer clients."""
SYSTEM_MESSAGES = ("refuse", "prepend")
"""What can become of system messages."""


class Message(TypedDict):
    """One turn of a conversation: `role` is 'user' or 'assistant'."""

    role: str
    content: str


@dataclass(frozen=True)
class PromptFormat:
    """How a release writes a conversation.

    Attributes:
        name: key in FORMATS.
        last_turn: template of the turn to be answered, with {question}.
        earlier_turn: template of an answered turn, with {question} and {answer}; None where no format for several turns
            exists.
        role_markers: texts that begin a turn; in a message they would forge one.
        one_line_breaks: whether a question is stripped and its runs of line breaks become one.
        end_in_history: whether training puts the end token after earlier answers, too. A prompt's text cannot hold it,
            so the pipelines' history has none; what the published weights were trained with is not known.
    """

    name: str
    last_turn: str
    earlier_turn: str | None = None
    role_markers: tuple[str, ...] = ()
    one_line_breaks: bool = False
    end_in_history: bool = False


FORMATS: dict[str, PromptFormat] = {
    prompt_format.name: prompt_format
    for prompt_format in (
        PromptFormat(name="base", last_turn="{question}"),
        PromptFormat(
            name="multialpaca",
            last_turn="{question}\n\n",
            earlier_turn="{question}\n\n{answer}\n",
            one_line_breaks=True,
        ),
        PromptFormat(
            name="assistant",
            last_turn="<|user|>\n{question}\n<|assistant|>\n",
            earlier_turn="<|user|>\n{question}\n<|assistant|>\n{answer}\n",
            role_markers=("<|user|>", "<|assistant|>"),
        ),
        PromptFormat(
            name="ecomm",
            last_turn=(
                "Below is an instruction that describes the attribute value detection task. "
                "Write a response that appropriately completes the request.\n"
                "### Instruction:\n{question}\n### Response:\n\n"
            ),
            role_markers=("### Instruction:", "### Response:"),
        ),
    )
}


def join_turns(messages: Sequence[Mapping[str, Any]], system_message: str = "refuse") -> list[Mapping[str, Any]]:
    """Return the turns of a conversation as clients of OpenAI's interface mean them, for `check_messages` to check.

    User messages in a row become one, with a blank line between them, and empty system messages are left out.

    Args:
        messages: mappings with `role` and `content`.
        system_message: 'prepend' puts a system message before the user message after it, or after the one before it
            where none follows; 'refuse' leaves it to be refused.
    """
    joined: list[Mapping[str, Any]] = []
    texts: list[str] = []
    for message in messages:
        role, content = _role_and_text(message)
        if role in SYSTEM_ROLES and not content.strip():
            continue
        if role in SYSTEM_ROLES and system_message == "prepend":
            texts.append(content)
        elif role == USER and content:
            _add_user(joined, "\n\n".join([*texts, content]))
            texts = []
        else:
            joined.append(message)
    if texts and joined and _role_and_text(joined[-1])[0] == USER:
        _add_user(joined, "\n\n".join(texts))
    elif texts:
        joined.append({"role": SYSTEM_ROLES[0], "content": "\n\n".join(texts)})
    return joined


def _role_and_text(message: object) -> tuple[object, str]:
    """A message's role, None if it has another form, and its content, if that is a text."""
    if not isinstance(message, Mapping):
        return None, ""
    role, content = message.get("role"), message.get("content")
    if content is not None and not isinstance(content, str):
        return None, ""
    return (role if isinstance(role, str) else None), content or ""


def _add_user(messages: list[Mapping[str, Any]], content: str) -> None:
    role, earlier = _role_and_text(messages[-1]) if messages else (None, "")
    if role == USER and earlier:
        messages.pop()
        content = f"{earlier}\n\n{content}"
    messages.append({"role": USER, "content": content})


def known_format(format: PromptFormat | None) -> PromptFormat:
    """Return the format in which messages are written. Raises InputError, which says what to pass, for None."""
    if format is None:
        raise InputError(
            "Nothing tells how this snapshot writes messages, as its release is not known: pass release= or "
            "prompt_format= where the model is loaded, or --release to the command. Plain texts run as they are."
        )
    return format


def check_messages(
    messages: object, allow_role_markers: bool | None = False, format: PromptFormat | None = None
) -> list[Message]:
    """The conversation, checked: user and assistant in turn, the user first and last.

    Args:
        messages: a list of mappings with `role` and `content`.
        allow_role_markers: let role markers inside a content through; they can forge a turn. None: no, and the caller
            offers no way to allow them.
        format: the release's format; None knows no release and refuses the markers of all formats.

    Raises:
        InputError: names the message and what is wrong with it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InputError(f"messages must be a list of {{'role': ..., 'content': ...}}, not {messages!r:.80}.")
    if not messages:
        raise InputError("messages is empty: give at least one {'role': 'user', 'content': ...}.")
    checked = [_checked_message(message, index) for index, message in enumerate(messages)]
    _check_order(checked)
    if format is not None:
        check_turns(checked, format)
    if not allow_role_markers:
        advice = "" if allow_role_markers is None else ", or pass allow_role_markers=True if you trust the text"
        _check_markers(checked, [format] if format is not None else FORMATS.values(), advice)
    return checked


def check_turns(messages: Sequence[Message], format: PromptFormat) -> None:
    """Raise InputError for several messages in a format that has no text for them."""
    if len(messages) > 1 and format.earlier_turn is None:
        kind = "The base release has no chat format" if format.name == "base" else f"{format.name!r} has no chat format"
        raise InputError(
            f"{kind} for {len(messages)} messages: give one user message, or use the assistant release to converse."
        )


def _checked_message(message: object, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise InputError(f"messages[{index}] must be {{'role': ..., 'content': ...}}, not {message!r:.80}.")
    role, content = message.get("role"), message.get("content")
    if role in SYSTEM_ROLES:
        raise InputError(
            f"messages[{index}] has the role {role!r}, which PolyLM was not trained with: put its text at the start of "
            "the first user message."
        )
    if role not in (USER, ASSISTANT):
        raise InputError(f"messages[{index}] has the role {role!r:.80}: use 'user' or 'assistant'.")
    _check_content(content, role, index)
    return Message(role=role, content=str(content))


def _check_content(content: Any, role: str, index: int) -> None:
    if not isinstance(content, str):
        raise InputError(f"messages[{index}] needs a 'content' of type str, not {content!r:.80}.")
    # A model may have answered nothing, so an empty answer is a valid part of a history.
    if role == USER and not content.strip():
        raise InputError(f"messages[{index}] has an empty content {content!r:.80}: give the user's text.")


def _check_order(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        expected = ASSISTANT if index % 2 else USER
        if message["role"] != expected:
            raise InputError(
                f"messages[{index}] has the role {message['role']!r} where {expected!r} is expected: "
                "user and assistant take turns, and the user begins."
            )
    if len(messages) % 2 == 0:
        raise InputError("messages ends with the assistant: end with the user message to be answered.")


def _check_markers(messages: Sequence[Message], formats: Iterable[PromptFormat], advice: str) -> None:
    markers = [marker for format in formats for marker in format.role_markers]
    for index, message in enumerate(messages):
        plain = _plain(message["content"])
        for marker in markers:
            if marker.lower() in plain:
                raise InputError(
                    f"messages[{index}] contains the role marker {marker!r}, which could forge a turn: "
                    f"remove it{advice}."
                )


def _plain(text: str) -> str:
    # A tokenizer's normalizer may fold wide letters, drop invisible characters and join spaces, and so make a marker.
    folded = unicodedata.normalize("NFKC", text)
    visible = (character for character in folded if character.isspace() or unicodedata.category(character)[0] != "C")
    return " ".join("".join(visible).lower().split())


def render(messages: Sequence[Message], format: PromptFormat) -> str:
    """Write checked messages as a prompt, which ends where the answer begins.

    Raises:
        InputError: several turns in a format that has none for them.
    """
    check_turns(messages, format)
    earlier = zip(messages[:-1:2], messages[1::2], strict=True)
    turns = [
        (format.earlier_turn or "").format(question=_question(user, format), answer=answer["content"])
        for user, answer in earlier
    ]
    return "".join(turns) + format.last_turn.format(question=_question(messages[-1], format))


def fit_messages(
    messages: Sequence[Message], format: PromptFormat, count_tokens: Callable[[str], int], limit: int
) -> list[Message]:
    """Drop the oldest turns of a conversation, as few as are needed for a prompt of at most `limit` tokens.

    Args:
        messages: checked messages.
        format: the release's format.
        count_tokens: number of tokens of a text.
        limit: tokens that the prompt may have.

    Raises:
        InputError: the last user message alone is too long; it is never cut.
    """
    tokens = count_tokens(render(messages[-1:], format))
    if tokens > limit:
        raise ContextLengthError(
            f"The last user message makes a prompt of {tokens} tokens, but only {max(limit, 0)} fit next to the answer "
            "in the context: shorten the message or lower max_new_tokens."
        )

    def fits(dropped_turns: int) -> bool:
        return count_tokens(render(messages[2 * dropped_turns :], format)) <= limit

    dropped_turns = bisect.bisect_left(range(len(messages) // 2), True, key=fits)
    return list(messages[2 * dropped_turns :])


def _question(message: Message, format: PromptFormat) -> str:
    content = message["content"]
    return re.sub("\n+", "\n", content.strip()) if format.one_line_breaks else content
