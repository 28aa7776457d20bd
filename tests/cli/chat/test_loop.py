"""The chat's loop, with messages from a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelscope_polylm.cli.chat import command as loop
from modelscope_polylm.cli.chat.command import run_chat, stats_line
from modelscope_polylm.conversation import Conversation, TurnStats
from modelscope_polylm.errors import InputError
from tests.cli.chat.conftest import FRENCH

PEKIN = "Pékin est la capitale de la Chine."


def reader(*lines: str) -> Callable[[], str]:
    left: Iterator[str] = iter(lines)

    def read() -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def chat(conversation: Conversation, *lines: str, interactive: bool = True) -> list[str]:
    notes: list[str] = []
    run_chat(conversation, reader(*lines), notes.append, interactive)
    return notes


def test_messages_commands_and_the_end(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    notes = chat(conversation, FRENCH, "", "  ", "/undo", "/quit", "never read")
    assert capsys.readouterr().out == f"{PEKIN}\n"
    assert "tokens/s; context: " in notes[0]
    assert notes[1].startswith("Taken back")
    assert len(notes) == 2


def test_two_slashes_begin_a_message(conversation: Conversation) -> None:
    chat(conversation, "/set max_new_tokens 1", "//etc")
    assert conversation.messages[0]["content"] == "/etc"


def test_errors_are_remarks_for_a_person(conversation: Conversation) -> None:
    notes = chat(conversation, "/set temperature -1", "<|user|>", FRENCH)
    assert "temperature=-1" in notes[0]
    assert "role marker" in notes[1] and notes[1].endswith("remove it.")
    assert "tokens/s" in notes[2]


def test_errors_end_a_script(conversation: Conversation) -> None:
    with pytest.raises(InputError, match="role marker"):
        chat(conversation, "<|user|>", FRENCH, interactive=False)
    assert conversation.messages == []


def interrupt_after(pieces: int) -> Callable[[str], None]:
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) == pieces:
            raise KeyboardInterrupt

    return write


def test_interrupt_stops_the_answer_and_keeps_the_chat(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "write", interrupt_after(2))
    notes = chat(conversation, FRENCH, "/retry")
    assert notes[0].startswith("Stopped.")
    assert conversation.messages[1]["content"] == PEKIN


def test_interrupt_ends_a_script(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write", interrupt_after(2))
    with pytest.raises(KeyboardInterrupt):
        chat(conversation, FRENCH, interactive=False)
    assert PEKIN.startswith(conversation.messages[1]["content"])


@pytest.mark.parametrize(
    ("stats", "line"),
    [
        (TurnStats(10, 2.0, 60, 452, "eos"), "10 tokens, 5.0 tokens/s; context: 60 of 512 tokens used, 452 left"),
        (TurnStats(0, 0.0, 512, 0, "eos", 3), "the oldest 3 turns no longer fit and were left out"),
        (TurnStats(8, 1.0, 60, 452, "length"), "cut off at 8 tokens (/set max_new_tokens 16 allows more)"),
    ],
)
def test_stats_line(stats: TurnStats, line: str) -> None:
    assert line in stats_line(stats)


def test_piped_chat(polylm: Callable[..., Any]) -> None:
    outcome = polylm("chat", "--device", "cpu", stdin=f"//{FRENCH}\n/undo\n".encode().replace(b"\nTr", b" Tr"))
    assert outcome.exit_code == 0
    assert len(outcome.output.splitlines()) == 1
    assert outcome.errors == ""


def test_piped_chat_from_windows(polylm: Callable[..., Any]) -> None:
    questions = [FRENCH.replace("\n", " "), "Beijing"]
    plain = polylm("chat", "--device", "cpu", stdin="\n".join(questions).encode())
    assert polylm("chat", "--device", "cpu", stdin="\ufeff".encode() + "\r\n".join(questions).encode()) == plain


@pytest.mark.parametrize(("stdin", "reason"), [(b"Paris \xff\n", "is not UTF-8"), (b"/bogus\n", "Unknown command")])
def test_piped_chat_with_bad_lines(polylm: Callable[..., Any], stdin: bytes, reason: str) -> None:
    outcome = polylm("chat", "--device", "cpu", stdin=stdin)
    assert outcome.exit_code == 2
    assert reason in outcome.errors
    assert len(outcome.errors.splitlines()) == 1
