"""`polylm chat`: a conversation with a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import Annotated, Any

import typer

from modelscope_polylm.cli.chat.commands import is_command, run_command
from modelscope_polylm.cli.chat.prompt import line_reader, message_reader
from modelscope_polylm.conversation import Conversation, TurnStats
from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.terminal.flags import (
    AdapterFlag,
    BackendFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    ReleaseFlag,
    RevisionFlag,
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.terminal.output import console, is_terminal, printable, write
from modelscope_polylm.text.prompts import known_format

Note = Callable[[str], None]
"""Tells the person something that is not part of the conversation."""


@takes_generation_options
def chat(
    *,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    system: Annotated[
        str, typer.Option(help="Text before the first message; PolyLM was not trained with system messages.")
    ] = "",
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Keep what is typed for the next chat's arrow keys.")
    ] = True,
    options: dict[str, Any],
) -> None:
    """Talk with a model.

    /help lists the commands. From a pipe every line is a message, and answers come out alone.

    Answers come by greedy search, or by sampling where the release samples, because beam search has nothing to show
    before its end; --num-beams 4 brings it back. An answer may take a quarter of the context (--max-new-tokens).
    """

    def begin() -> Conversation:
        return Conversation(
            load_model(model, revision, device, dtype, backend, release, adapter), options, system=system
        )

    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        run_chat(begin(), line_reader(), lambda text: None, interactive=False)
        return
    read = message_reader(history)
    conversation = begin()
    _note(_greeting(model, conversation))
    run_chat(conversation, read, _note, interactive=True)


def _note(text: str) -> None:
    console().print(printable(text), style="dim")


def _greeting(model: str, conversation: Conversation) -> str:
    lines = [f"{model} on {conversation.generator.backend.device}. /help lists the commands, Ctrl-D ends the chat."]
    if not conversation.has_turns:
        name = known_format(conversation.generator.snapshot.prompt_format).name
        lines.append(f"Its prompt format, {name!r}, has no conversations: every message is answered on its own.")
    if conversation.options.num_beams > 1:
        lines.append("Beam search shows an answer when it is complete.")
    return "\n".join(lines)


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
    if conversation.stats is not None:
        note(stats_line(conversation.stats))
    return False


def _show(answer: Generator[str, None, None]) -> None:
    """Show an answer while it comes; if that is interrupted, the answer is, too."""
    try:
        for piece in answer:
            write(piece)
    finally:
        answer.close()
        write("\n")


def stats_line(stats: TurnStats) -> str:
    """One line below an answer: its speed, the context, and what may surprise."""
    speed = stats.tokens / stats.seconds if stats.seconds else 0.0
    parts = [
        f"{stats.tokens} tokens, {speed:.1f} tokens/s",
        f"context: {stats.used} of {stats.used + stats.left} tokens used, {stats.left} left",
    ]
    if stats.finish_reason == "length":
        parts.append(f"cut off at {stats.tokens} tokens (/set max_new_tokens {2 * stats.tokens} allows more)")
    if stats.turns_left_out:
        parts.append(f"the oldest {stats.turns_left_out} turns no longer fit and were left out")
    return "; ".join(parts)
