"""From a conversation to the prompt that a release was trained on."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence

from modelscope_polylm.errors import ContextLengthError
from modelscope_polylm.text.messages import Message, check_messages, check_turns
from modelscope_polylm.text.prompt_formats import FORMATS, PromptFormat

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
