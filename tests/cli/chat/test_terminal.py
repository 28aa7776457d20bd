"""`polylm chat` at a real terminal."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.processes import Terminal, terminal

LONG = ("--max-new-tokens", "400", "--eos-token-id", "2999")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-8]|4[0-8]|9[0-7])m")
PARAGRAPHS = "Beijing is the capital of China.\x1b\rTranslate this sentence from English to French."


def prompted(screen: Terminal) -> None:
    """Wait until the chat reads keys; a dumb terminal shows its prompt a moment before."""
    screen.expect(">")
    time.sleep(0.3)


def test_a_talk(tmp_path: Path) -> None:
    with terminal("chat", "--device", "cpu", XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.expect("/help lists the commands, Ctrl-D ends the chat.")
        prompted(screen)
        screen.type(PARAGRAPHS)
        screen.type("\r")
        screen.expect("Pékin est la capitale de la Chine.")
        screen.expect("tokens/s")
        prompted(screen)
        screen.type("/set temperature 0.7\r")
        screen.expect("temperature is 0.7.")
        prompted(screen)
        screen.type("/sytem\r")
        screen.expect("did you mean /system?")
        prompted(screen)
        screen.type("\x1b[A\x1b[A")  # the last message but one
        screen.expect("/set temperature 0.7")
        screen.type("\x15/quit\r")
        assert screen.wait() == 0
    history = tmp_path / "polylm" / "chat_history"
    assert "+Translate this sentence" in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0


def test_interrupts_and_the_end(tmp_path: Path) -> None:
    with terminal("chat", "--device", "cpu", "--no-history", *LONG, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.expect("ends the chat.")
        prompted(screen)
        screen.type("\x03")
        screen.expect("Ctrl-D or /quit")
        prompted(screen)
        screen.type("Beijing\r")
        screen.expect("Beijing")
        screen.expect("Pechino")  # begins the answer
        screen.type("\x03")
        screen.expect("Stopped.")
        prompted(screen)
        screen.type("/undo\r")
        screen.expect("Taken back: Beijing")
        prompted(screen)
        screen.type("\x04")
        assert screen.wait() == 0
    assert not (tmp_path / "polylm").exists()


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_narrow_and_plain(tmp_path: Path, changes: dict[str, str]) -> None:
    (tmp_path / "polylm").write_text("in the way of the history's folder")
    with terminal("chat", "--device", "cpu", columns=20, XDG_STATE_HOME=str(tmp_path), **changes) as screen:
        screen.expect("not kept")
        screen.expect("chat.")
        prompted(screen)
        screen.type("Hello\r")
        screen.expect("left")
        prompted(screen)
        screen.type("\x04")
        assert screen.wait() == 0
        assert COLOUR.search(screen.raw) is None
