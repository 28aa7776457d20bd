"""Readers that go away, full disks, Ctrl-C, odd encodings: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.processes import POLYLM, environment, run_polylm, terminal

GREEDY = ("generate", "--num-beams", "1", "--max-new-tokens", "400", "--eos-token-id", "2999", "Beijing")
LINES = ("tokens", "--languages")


def start(*arguments: str, **options: int) -> subprocess.Popen[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*POLYLM, *arguments], env=environment(), **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("arguments", "first_bytes"),
    [(GREEDY, 0), (GREEDY, 1), (LINES, 0), (("--help",), 0), ((), 0)],
    ids=["stream", "stream after a byte", "lines", "help", "nothing"],
)
def test_reader_goes_away(arguments: tuple[str, ...], first_bytes: int) -> None:
    process = start(*arguments)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(first_bytes)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == 141
    assert errors == b""


def test_head(tmp_path: Path) -> None:
    command = f"{' '.join(POLYLM)} generate --num-beams 1 --max-new-tokens 400 --eos-token-id 2999 Beijing | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), timeout=120, check=False)
    assert len(done.stdout) == 1
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_polylm("tokens", "Hi", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 1
    assert done.stderr == "Error: The output cannot be written: No space left on device.\n"


def test_closed_stdout() -> None:
    command = f"{' '.join(POLYLM)} tokens Hi >&-"
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_character_gets_lost_in_a_pipe(encoding: str) -> None:
    for flags in ((), ("--json",)):
        done = run_polylm("tokens", "北京 é", *flags, env=environment(PYTHONIOENCODING=encoding), encoding="utf-8")
        assert (done.returncode, done.stderr) == (0, "")
        assert "北京" in done.stdout and "é" in done.stdout


def test_an_encoding_that_has_all_characters_stays() -> None:
    done = run_polylm("tokens", "北京 é", env=environment(PYTHONIOENCODING="gb18030"), encoding="gb18030")
    assert "北京" in done.stdout and "é" in done.stdout


def test_a_terminal_without_characters_shows_their_escapes() -> None:
    with terminal("tokens", "北京 é", PYTHONIOENCODING="ascii") as screen:
        assert screen.wait() == 0
        assert "\\u5317\\u4eac" in screen.screen
        assert "?" not in screen.screen


@pytest.fixture(scope="module")
def start_seconds() -> float:
    """How long it takes on this machine, with its load, until a command begins; before that Python itself answers."""
    begin = time.monotonic()
    run_polylm("--version")
    return 1.5 * (time.monotonic() - begin)


@pytest.mark.parametrize("seconds", [0.3, 3.0])
def test_interrupt(seconds: float, start_seconds: float) -> None:
    process = start(*GREEDY[:3], "--max-new-tokens", "400", "--no-repeat-ngram-size", "1", *GREEDY[5:])
    time.sleep(start_seconds + seconds)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    # if it came while an import ran a text by exec(), Python ends itself by the signal, which shells call 130, too
    assert process.returncode in (0, 130, -signal.SIGINT)
    if process.returncode and not output.endswith(b"\n"):  # otherwise the answer was complete before the signal came
        assert errors == b"Interrupted.\n"
    else:
        assert output.endswith(b"\n")


def test_no_colour_and_no_bars_in_a_pipe() -> None:
    done = run_polylm("generate", "--num-beams", "1", "--max-new-tokens", "4", "Hi", env=environment(FORCE_COLOR="1"))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("columns", [20, 100])
def test_terminal(columns: int) -> None:
    with terminal("tokens", "Beijing 北京", columns=columns) as screen:
        assert screen.wait() == 0
        assert "\x1b[" in screen.raw
        assert "2 tokens" in screen.screen or "tokens, " in screen.screen


def test_terminal_without_colour() -> None:
    with terminal("tokens", "Beijing 北京", NO_COLOR="1") as screen:
        assert screen.wait() == 0
        assert "\x1b[3" not in screen.raw and "\x1b[4" not in screen.raw


def test_interrupt_at_a_terminal() -> None:
    with terminal("generate", "-", columns=20) as screen:
        time.sleep(2)
        screen.type("\x03")
        assert screen.wait() == 130
        assert "Interrupted." in screen.screen


def test_argument_that_is_not_utf8() -> None:
    command = [os.fsencode(part) for part in POLYLM]
    done = subprocess.run(
        [*command, b"tokens", b"Paris \xff"], capture_output=True, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 2
    assert b"lone surrogate" in done.stderr
    assert len(done.stderr.splitlines()) == 1
