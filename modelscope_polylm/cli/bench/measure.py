"""Times: medians of several calls behind warm-up calls, and the device's read bandwidth."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from modelscope_polylm.cli.bench.engines import Contender
from modelscope_polylm.cli.bench.workloads import Work
from modelscope_polylm.network.kernels.lm_head import lm_head_topk


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One engine's times for one piece of work.

    Attributes:
        work, engine: names.
        rows, prompt, new: the work's size, in prompts and in tokens of each.
        unit, value: the median in the work's unit.
        first_seconds: the first call, with compiling and capturing.
        seconds: the calls behind the warm-up, less the work's beginning where that does not count.
        peak_bytes: most memory allocated on the GPU, 0 on a CPU.
    """

    work: str
    engine: str
    rows: int
    prompt: int
    new: int
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
    first = _counted_seconds(contender, work)
    seconds = tuple(_counted_seconds(contender, work) for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    value = work.value(statistics.median(seconds))
    size = (work.rows, work.prompt, work.new)
    return Measurement(work.name, contender.name, *size, work.unit, value, first, seconds, peak)


def _counted_seconds(contender: Contender, work: Work) -> float:
    """Seconds of one call, less those of its beginning where that does not count."""
    whole, beginning = timed(lambda: contender.run(work)), work.beginning()
    return whole if beginning is None else whole - timed(lambda: contender.run(beginning))


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which weights can be read: the faster of the library's and of our product with one vector."""
    # far beyond any cache; the shape of the output layer, which the library reads fast where it is slow on taller ones
    rows, width, times = (256_000, 5120, 8) if device.type == "cuda" else (25_600, 5120, 1)
    matrix = torch.empty(rows, width, dtype=torch.bfloat16, device=device).normal_()
    vector = torch.randn(width, dtype=torch.bfloat16, device=device)

    def rate(product: Callable[[], object]) -> float:
        seconds = [timed(lambda: [product() for _ in range(times)]) for _ in range(8)]
        return times * matrix.numel() * 2 / statistics.median(seconds[3:])

    return max(rate(lambda: torch.mv(matrix, vector)), rate(lambda: lm_head_topk(vector[None], matrix, 1, rows)))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
