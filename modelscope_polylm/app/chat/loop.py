"""The chat's loop: read a message or a command, show what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Generator

from modelscope_polylm.app.chat.commands import is_command, run_command
from modelscope_polylm.app.chat.conversation import Conversation, Facts
from modelscope_polylm.app.terminal import write
from modelscope_polylm.errors import PolyLMError

Note = Callable[[str], None]
"""Tells the person something that is not part of the conversation."""


def run_chat(conversation: Conversation, read: Callable[[], str], note: Note, interactive: bool) -> None:
    """Answer messages until `read` raises EOFError or /quit is given.

    Args:
        conversation: where messages go.
        read: the next message, of one or more lines.
        note: shows remarks.
        interactive: with a person, errors are remarks and Ctrl-C stops an answer; in a script both end the chat.
    """
    while True:
        try:
            line = read()
            if line.strip() and _respond(conversation, line, note):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            note("Stopped. What has come of an answer stays; /retry answers again, /undo takes it back.")
        except PolyLMError as error:
            if not interactive:
                raise
            note(str(error))


def _respond(conversation: Conversation, line: str, note: Note) -> bool:
    """Answer one message or command; whether it ends the chat."""
    if not is_command(line):
        answer = conversation.ask(line[1:] if line.startswith("//") else line)
    else:
        outcome = run_command(conversation, line)
        if outcome.message:
            note(outcome.message)
        if outcome.answer is None:
            return outcome.ends
        answer = outcome.answer
    _show(answer)
    if conversation.facts is not None:
        note(facts_line(conversation.facts))
    return False


def _show(answer: Generator[str, None, None]) -> None:
    """Show an answer while it comes; if that is interrupted, the answer is, too."""
    try:
        for piece in answer:
            write(piece)
    finally:
        answer.close()
        write("\n")


def facts_line(facts: Facts) -> str:
    """One line below an answer: its speed, the context, and what may surprise."""
    speed = facts.tokens / facts.seconds if facts.seconds else 0.0
    parts = [
        f"{facts.tokens} tokens, {speed:.1f} tokens/s",
        f"context: {facts.used} of {facts.used + facts.left} tokens used, {facts.left} left",
    ]
    if facts.finish_reason == "length":
        parts.append(f"cut off at {facts.tokens} tokens (/set max_new_tokens {2 * facts.tokens} allows more)")
    if facts.turns_left_out:
        parts.append(f"the oldest {facts.turns_left_out} turns no longer fit and were left out")
    return "; ".join(parts)
