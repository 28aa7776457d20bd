"""Read messages from a person, with several lines, editing, history and completion, or from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.cli.chat.commands import COMMANDS
from modelscope_polylm.errors import DependencyError, InputError
from modelscope_polylm.files import decode_text
from modelscope_polylm.terminal.output import write_error

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings


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
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
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
