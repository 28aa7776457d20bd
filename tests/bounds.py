"""Limits within which hostile input has to be refused: seconds, and memory of this process."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOM_BYTES = 4 << 30
"""Address space that the code under test may take beyond what there is: it fails there, and the machine does not."""


@contextlib.contextmanager
def within(seconds: float, megabytes: float) -> Iterator[None]:
    """Fail unless the block ends in time and in memory; prints both. Memory is measured on Linux."""
    before, start = _memory("VmRSS"), time.perf_counter()
    with limited_memory(ROOM_BYTES):
        yield
    took, grew = time.perf_counter() - start, (_memory("VmHWM") - before) / 1e6
    print(f"{took:.2f} s, {grew:.0f} MB more at the peak")
    assert took < seconds
    assert grew < megabytes


@contextlib.contextmanager
def limited_memory(room: int) -> Iterator[None]:
    """Let this process take so many bytes of address space more, on Linux."""
    if sys.platform != "linux":
        yield
        return
    import resource

    gc.collect()  # what other tests have left must not become room
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _memory(field: str) -> int:
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
