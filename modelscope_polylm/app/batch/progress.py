"""What is shown while a batch runs: rows done, tokens a second, time left; nothing where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from modelscope_polylm.app.terminal import NARROW, console, is_terminal


class Progress:
    """Counts, and shows a bar on a terminal's stderr.

    Attributes:
        rows, errors, tokens: finished in this run.
    """

    def __init__(self, total: int, done: int) -> None:
        self.rows, self.errors, self.tokens = 0, 0, 0
        self._total, self._done = total, done
        self._start = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens, since the start."""
        return self.tokens / (time.perf_counter() - self._start)

    def summary(self) -> dict[str, float]:
        """What this run has done."""
        seconds = round(time.perf_counter() - self._start, 3)
        speed = round(self.tokens_per_second, 1)
        counts = {"answered": self.rows - self.errors, "errors": self.errors, "tokens": self.tokens}
        return {**counts, "seconds": seconds, "tokens_per_second": speed}

    def report(self, rows: int, errors: int, tokens: int) -> None:
        """Count finished rows."""
        self.rows, self.errors, self.tokens = self.rows + rows, self.errors + errors, self.tokens + tokens
        if self._bar is not None:
            done = min(self._done + self.rows, self._total)
            self._bar.update(self._task, completed=done, speed=f"{self.tokens_per_second:,.0f} tokens/s")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar on a terminal while the run lasts."""
        if not is_terminal(sys.stderr):
            yield
            return
        from rich import progress

        screen = console(stderr=True)
        wide = [progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[speed]}")]
        columns = [
            *(wide if screen.width >= NARROW else []),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
        ]
        with progress.Progress(*columns, console=screen) as self._bar:
            self._task = self._bar.add_task("", total=self._total, completed=self._done, speed="")
            yield
