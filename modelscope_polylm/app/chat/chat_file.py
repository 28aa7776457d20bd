"""Conversations as JSON files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from modelscope_polylm.app.chat.conversation import Conversation
from modelscope_polylm.errors import InputError
from modelscope_polylm.text.prompts import check_messages

KIND = "polylm chat"


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
    if file.exists():
        _read(file)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"{file} cannot be written: {error.strerror}.") from error


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
    prompt_format = conversation.generator.snapshot.prompt_format if conversation.knows_turns else None
    try:
        # with a question behind it, a whole conversation has the form of one that is to be answered
        checked = check_messages([*messages, {"role": "user", "content": "?"}], format=prompt_format)[:-1]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    conversation.change({**dict.fromkeys(conversation.settings), **settings})
    conversation.clear()
    conversation.messages = checked


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no saved chat: choose another name.") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise InputError(f"{file} is no saved chat: choose another name.")
    return content
