"""A bar for bytes that are written or sent, on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from modelscope_polylm.app.terminal import NARROW, console, is_terminal

Progress = Callable[[int, int], None]
"""Takes the bytes that are done and their total."""


@contextlib.contextmanager
def byte_progress(text: str) -> Iterator[Progress | None]:
    """What to call while bytes go on; None where nobody would see it."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich import progress

    screen = console(stderr=True)
    wide = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    ]
    columns = [*(wide if screen.width >= NARROW else []), progress.TaskProgressColumn(), progress.TimeRemainingColumn()]
    with progress.Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
