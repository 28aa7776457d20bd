"""Runs the command line in processes of its own: with pipes, or at a terminal of any width."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import resource
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POLYLM = [sys.executable, "-m", "modelscope_polylm"]
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_=>])")


def environment(**changes: str) -> dict[str, str]:
    """This process's, with one thread for torch and without settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    plain = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    return {**kept, **plain, **changes}


def run_polylm(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `polylm` with pipes to its end."""
    settings = {"capture_output": True, "text": True, "timeout": 240, "env": environment(), **options}
    return subprocess.run([*POLYLM, *arguments], check=False, **settings)


def ended_seconds() -> float:
    """Processor time of all processes that this one started and that have ended; the wall clock measures other work."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Terminal:
    """`polylm` with a terminal as its stdin, stdout and stderr."""

    def __init__(self, *arguments: str, columns: int = 80, **changes: str) -> None:
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [*POLYLM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(**changes),
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C becomes a signal
        )
        os.close(slave)
        self.raw = ""
        self._seen = 0

    @property
    def screen(self) -> str:
        """Everything that was shown, without escape sequences."""
        return ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """Press keys; Enter is a carriage return."""
        os.write(self._master, text.encode())

    def expect(self, text: str, timeout: float = 40) -> str:
        """Wait until a text is shown after the last one that was waited for; returns what was shown until then."""
        end = time.monotonic() + timeout
        while text not in self.screen[self._seen :]:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"{text!r} is not shown:\n{self.screen}")
        start, self._seen = self._seen, self.screen.index(text, self._seen) + len(text)
        return self.screen[start : self._seen]

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end; returns the exit code."""
        end = time.monotonic() + timeout
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(timeout)

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """Read what comes; False at the end of the output or of the time."""
        ready, _, _ = select.select([self._master], [], [], max(seconds, 0))
        if not ready:
            return False
        with contextlib.suppress(OSError):  # how Linux tells that the other side is closed
            data = os.read(self._master, 65536)
            self.raw += data.decode(errors="replace")
            return bool(data)
        return False


@contextlib.contextmanager
def terminal(*arguments: str, columns: int = 80, **changes: str) -> Iterator[Terminal]:
    """`polylm` at a terminal; it ends with the block."""
    opened = Terminal(*arguments, columns=columns, **changes)
    try:
        yield opened
    finally:
        opened.close()
