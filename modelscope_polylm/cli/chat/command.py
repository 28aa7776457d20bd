"""`polylm chat`: a conversation with a model in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.cli.chat.commands import ALIASES, COMMANDS, is_command, run_command
from modelscope_polylm.conversation import Conversation, TurnStats
from modelscope_polylm.errors import DependencyError, InputError, PolyLMError
from modelscope_polylm.files import decode_text
from modelscope_polylm.terminal.flags import (
    AdapterFlag,
    BackendFlag,
    CacheDtypeFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    QuantizationFlag,
    ReleaseFlag,
    RevisionFlag,
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.terminal.output import console, is_terminal, printable, write, write_error
from modelscope_polylm.text.prompts import known_format

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings


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
    quantization: QuantizationFlag = None,
    kv_cache_dtype: CacheDtypeFlag = None,
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
        generator = load_model(model, revision, device, dtype, backend, release, adapter, quantization, kv_cache_dtype)
        return Conversation(generator, options, system=system)

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


def history_file() -> Path:
    """Where messages typed in earlier chats are kept: in $XDG_STATE_HOME, by default ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "polylm" / "chat_history"


def message_reader(keep_history: bool) -> Callable[[], str]:
    """Read a message at a time from the terminal; EOFError at Ctrl-D. Raises DependencyError."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
    except ImportError as error:
        raise DependencyError("`polylm chat` needs prompt_toolkit: pip install prompt_toolkit.") from error
    session: Any = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation=lambda *_: "  ",
        key_bindings=_keys(),
        history=_history(history_file() if keep_history else None),
        completer=WordCompleter([f"/{name}" for name in (*COMMANDS, *ALIASES)], sentence=True),
        complete_while_typing=False,
    )

    def read() -> str:
        try:
            return str(session.prompt())
        except KeyboardInterrupt:
            write_error("Ctrl-D or /quit ends the chat.")
            return ""

    return read


def line_reader() -> Callable[[], str]:
    """Read a line at a time from a stdin that is no terminal; EOFError at its end, InputError if it is not UTF-8."""

    def read() -> str:
        line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
        if not line:
            raise EOFError
        try:
            return decode_text(line).rstrip("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"stdin is not UTF-8 text ({error.reason} at byte {error.start} of a line).") from error

    return read


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    # what is typed before the prompt is there has line feeds (Ctrl-J) for Enter
    @keys.add("enter")
    @keys.add("c-j")
    def _(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history(file: Path | None) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        write_error(f"{file} cannot be written ({error.strerror}): this chat is not kept in the history.")
        return InMemoryHistory()
    return FileHistory(str(file))
