"""Prompt formats as data, and how messages become the one text that a release was trained with."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelscope_polylm.errors import ContextLengthError
from modelscope_polylm.text.messages import Message, check_messages, check_turns

__all__ = ["FORMATS", "Message", "PromptFormat", "check_messages", "fit_messages", "render"]


def render(messages: Sequence[Message], format: PromptFormat) -> str:
    """The prompt of checked messages, ending where the answer begins.

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
    """The conversation without its oldest turns, as few of them as are needed for a prompt of at most `limit` tokens.

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
            f"The last user message makes a prompt of {tokens} tokens, but only {max(limit, 0)} fit beside the answer "
            "in the context: shorten the message or lower max_new_tokens."
        )

    def fits(dropped_turns: int) -> bool:
        return count_tokens(render(messages[2 * dropped_turns :], format)) <= limit

    dropped_turns = bisect.bisect_left(range(len(messages) // 2), True, key=fits)
    return list(messages[2 * dropped_turns :])


def _question(message: Message, format: PromptFormat) -> str:
    content = message["content"]
    return re.sub("\n+", "\n", content.strip()) if format.one_line_breaks else content


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
    """

    name: str
    last_turn: str
    earlier_turn: str | None = None
    role_markers: tuple[str, ...] = ()
    one_line_breaks: bool = False


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
