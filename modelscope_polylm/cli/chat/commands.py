"""The chat's commands: a line that begins with a slash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_polylm.conversation import Conversation
from modelscope_polylm.errors import InputError, OptionError, nearest_name, suggestion
from modelscope_polylm.files import decode_text, write_atomically
from modelscope_polylm.terminal.flags import FIELDS, typed_value
from modelscope_polylm.text.prompts import check_messages

KIND = "polylm chat"
"""Tells files of saved chats from others."""
KEYS = "Enter sends, Alt-Enter makes a new line, Ctrl-C stops an answer, Ctrl-D ends the chat; // begins with a slash."
SHOWN_OPTIONS = (
    "max_new_tokens",
    "do_sample",
    "num_beams",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
)
"""Options that /set shows in any case."""


@dataclass
class CommandResult:
    """What a command leads to: something to tell, an answer to show, the end of the chat."""

    message: str = ""
    answer: Generator[str, None, None] | None = None
    ends: bool = False


Command = Callable[[Conversation, str], CommandResult]


def is_command(line: str) -> bool:
    """Whether a line is a command; two slashes begin a message that starts with one."""
    return line.startswith("/") and not line.startswith("//")


def run_command(conversation: Conversation, line: str) -> CommandResult:
    """Run a command such as '/set temperature 0.7'.

    Raises:
        InputError: an unknown command (the nearest is named), or one that cannot be done now.
        OptionError: a setting that cannot be.
    """
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(ALIASES.get(name[1:], name[1:]))
    if command is None:
        nearest = nearest_name(name[1:], [*COMMANDS, *ALIASES])
        hint = f"did you mean /{nearest}?" if nearest else "/help lists the commands."
        raise InputError(f"Unknown command {name}: {hint} A message that begins with a slash needs two.")
    return command(conversation, argument.strip())


def _clear(conversation: Conversation, argument: str) -> CommandResult:
    """/clear: begin a new conversation."""
    conversation.clear()
    return CommandResult("A new conversation.")


def _undo(conversation: Conversation, argument: str) -> CommandResult:
    """/undo: take the last question and its answer back; /undo 2 takes back two."""
    count, turns = argument or "1", len(conversation.messages) // 2
    if not count.isdecimal() or int(count) < 1:
        raise InputError(f"/undo {argument} cannot be read: write how many questions to take back, as in /undo 2.")
    if 0 < turns < int(count):
        raise InputError(f"/undo {argument}: there are {turns} questions. /clear begins a new conversation.")
    questions = [_shortened(conversation.undo()) for _ in range(int(count))]
    return CommandResult("\n".join(f"Taken back: {question}" for question in questions))


def _retry(conversation: Conversation, argument: str) -> CommandResult:
    """/retry: answer the last question again."""
    answer = conversation.retry()
    options = conversation.options
    same = not options.do_sample or options.seed is not None
    note = "Nothing is random here, so the answer will be the same: /set do_sample true, or change another setting."
    return CommandResult(note if same else "", answer)


def _save(conversation: Conversation, argument: str) -> CommandResult:
    """/save FILE: write the conversation to a file."""
    save(conversation, _file(argument))
    return CommandResult(f"Saved {len(conversation.messages)} messages to {argument}.")


def _load(conversation: Conversation, argument: str) -> CommandResult:
    """/load FILE: go on with a saved conversation."""
    load(conversation, _file(argument))
    return CommandResult(f"Loaded {len(conversation.messages)} messages from {argument}.")


def _set(conversation: Conversation, argument: str) -> CommandResult:
    """/set NAME VALUE: change a generation option, as in /set temperature 0.7; without a value back to its default."""
    name, _, text = argument.partition(" ")
    name = name.replace("-", "_")
    if not name:
        return CommandResult(_settings(conversation))
    if name not in FIELDS:
        raise OptionError(f"Unknown option {name!r}: {suggestion(name, FIELDS)}")
    value = typed_value(FIELDS[name], text.strip()) if text.strip() else None
    conversation.change({name: value})
    return CommandResult(f"{name} is {getattr(conversation.options, name)}.")


def _system(conversation: Conversation, argument: str) -> CommandResult:
    """/system: say what to do instead of a system message, which PolyLM does not know."""
    raise InputError(
        "PolyLM was trained without system messages and would read one as ordinary text: put what it should know or "
        "how it should answer at the start of your first message, or start the chat with --system TEXT."
    )


def _help(conversation: Conversation, argument: str) -> CommandResult:
    """/help: show this."""
    return CommandResult("\n".join([*(str(command.__doc__) for command in COMMANDS.values()), KEYS]))


def _quit(conversation: Conversation, argument: str) -> CommandResult:
    """/quit: end the chat, as /exit and /bye do."""
    return CommandResult(ends=True)


COMMANDS: dict[str, Command] = {
    "clear": _clear,
    "undo": _undo,
    "retry": _retry,
    "save": _save,
    "load": _load,
    "set": _set,
    "system": _system,
    "help": _help,
    "quit": _quit,
}
ALIASES = {"exit": "quit", "bye": "quit"}


def _file(argument: str) -> Path:
    if not argument:
        raise InputError("Which file? As in /save talk.json or /load talk.json.")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise InputError(f"{argument}: there is no such user, whose home folder it would be in.") from error


def _settings(conversation: Conversation) -> str:
    options = conversation.options
    names = dict.fromkeys([*SHOWN_OPTIONS, *conversation.settings])
    return "\n".join(f"{name} {getattr(options, name)}" for name in names)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def save(conversation: Conversation, file: Path) -> None:
    """Write messages and settings. A file that is no saved chat is not replaced.

    Raises:
        InputError: there is another kind of file, or it cannot be written.
    """
    release = conversation.generator.snapshot.release
    content = {
        "kind": KIND,
        "model": release.name if release else str(conversation.generator.snapshot.folder),
        "settings": conversation.settings,
        "messages": conversation.messages,
    }
    if os.path.isfile(file):  # Path.is_file raises where a name is too long
        _read(file)
    try:
        write_atomically(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    except (OSError, ValueError) as error:
        raise InputError(f"Nothing was saved: {_obstacle(file, error)}") from error


def _obstacle(file: Path, error: OSError | ValueError) -> str:
    """Why a file cannot be written, and what to do."""
    if os.path.isdir(file):
        return f"{file} is a folder. Add a name, as in /save {file / 'talk.json'}."
    if isinstance(error, FileNotFoundError):
        return f"there is no folder {file.parent}. Make it first, or choose another one."
    if isinstance(error, PermissionError):
        return f"you may not write into the folder {file.parent}. Choose another one, as in /save ~/talk.json."
    reason = error.strerror if isinstance(error, OSError) else error
    return f"{file!s:.200} cannot be written ({reason}). Choose another file."


def load(conversation: Conversation, file: Path) -> None:
    """Take messages and settings from a file; if they cannot be used, the conversation stays as it is.

    Raises:
        InputError: no saved chat, or one with broken messages.
        OptionError: settings that this model does not have.
    """
    content = _read(file)
    messages, settings = content.get("messages"), content.get("settings")
    if not isinstance(messages, list) or not isinstance(settings, dict):
        raise InputError(f"{file} is a damaged chat: it lacks 'messages' or 'settings'.")
    prompt_format = conversation.generator.snapshot.prompt_format if conversation.has_turns else None
    try:
        # with a question after it, a whole conversation has the form of one that is to be answered
        checked = check_messages([*messages, {"role": "user", "content": "?"}], format=prompt_format)[:-1]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    conversation.change({**dict.fromkeys(conversation.settings), **settings})
    conversation.clear()
    conversation.messages = checked


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(decode_text(file.read_bytes()))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Which saved chat is meant?") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no saved chat, and stays as it is: choose another name.") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise InputError(f"{file} is no saved chat, and stays as it is: choose another name.")
    return content
