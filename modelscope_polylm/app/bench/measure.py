"""Times: medians of several calls behind warm-up calls, and the device's read bandwidth."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from modelscope_polylm.app.bench.engines import Contender
from modelscope_polylm.app.bench.works import Work


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One engine's times for one piece of work.

    Attributes:
        work, engine: names.
        unit, value: the median in the work's unit.
        first_seconds: the first call, with compiling and capturing.
        seconds: the calls behind the warm-up.
        peak_bytes: most memory allocated on the GPU, 0 on a CPU.
    """

    work: str
    engine: str
    unit: str
    value: float
    first_seconds: float
    seconds: tuple[float, ...]
    peak_bytes: int


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time until the device is idle again."""
    _synchronize()
    start = time.perf_counter()
    action()
    _synchronize()
    return time.perf_counter() - start


def measure(contender: Contender, work: Work, repeats: int) -> Measurement:
    """Run the work once to warm up, then `repeats` times."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    first = timed(lambda: contender.run(work))
    seconds = tuple(timed(lambda: contender.run(work)) for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    value = work.value(statistics.median(seconds))
    return Measurement(work.name, contender.name, work.unit, value, first, seconds, peak)


def read_bandwidth(device: torch.device, gigabytes: float = 8.0) -> float:
    """Bytes per second of a large matrix-vector product: the fastest that weights can be read."""
    width = 5120
    matrix = torch.empty(int(gigabytes * 1e9) // (2 * width), width, dtype=torch.bfloat16, device=device).normal_()
    vector = torch.randn(width, 1, dtype=torch.bfloat16, device=device)
    seconds = [timed(lambda: matrix @ vector) for _ in range(8)]
    return matrix.numel() * 2 / statistics.median(seconds[3:])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
