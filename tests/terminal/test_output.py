"""What is written, and to whom."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from modelscope_polylm.terminal.output import is_terminal, printable, working, write, write_error


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("北京\té\n", "北京\té\n"),
        ("\x1b[2J\x07\x9b", "\ufffd[2J\ufffd\ufffd"),
        ("a\rb", "a\ufffdb"),
        ("שלום \u200f", "שלום \u200f"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_only_a_terminal_is_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((io.StringIO(), "\x1b"), (Screen(), "\ufffd")):
        monkeypatch.setattr(sys, "stdout", stream)
        write("\x1b")
        assert stream.getvalue() == expected


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    write("a")
    write_error("a")
    assert not is_terminal(sys.stdout)


def test_gone_reader_of_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Gone(io.StringIO):
        def write(self, text: Any) -> int:
            tried.append(text)
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    write_error("a")
    assert "".join(tried).startswith("a")


def test_working_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with working("Loading"):
        pass
    assert capsys.readouterr() == ("", "")
