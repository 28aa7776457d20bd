"""Timing by replayed CUDA graphs, and the record of a run of `benchmarks.kernels`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.kernel_setting import Setting


class Run:
    """Settings and results of one run."""

    def __init__(self, setting: Setting, mode: str) -> None:
        self.setting, self.mode = setting, mode
        self.bandwidth = 0.0
        self.results: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """Runs one part; a part that fails prints why and the rest goes on."""
        try:
            return call()
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0][:160]
            print(f"FAILED  {what}: {type(error).__name__}: {first}", flush=True)
            self.results.append({"section": "failed", "name": what, "error": repr(error)[:2000]})
            return None

    def measure(
        self, section: str, name: str, calls: Sequence[Callable[[], Any]], size: int, config: Any = None
    ) -> float:
        """Times the calls and records the result; infinite where they fail."""
        seconds = self.attempt(f"{name} {config or ''}", lambda: self.seconds(calls))
        if seconds is None:
            return float("inf")
        rate = size / seconds
        limit = rate / self.bandwidth if self.bandwidth else None
        numbers = {"us": seconds * 1e6, "bytes": size, "TB/s": rate / 1e12, "limit": limit}
        self.results.append({"section": section, "name": name, **numbers, "config": str(config)})
        line = f"{section:8s} {name:44s} {seconds * 1e6:9.2f} us {size / 1e6:9.2f} MB {rate / 1e12:6.3f} TB/s"
        print(line, f"{limit:5.3f}" if limit else "", config or "", flush=True)
        return seconds

    def seconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Seconds for each of `calls`, captured one after the other in one graph: median of its replays."""
        if self.setting.device.type == "cpu":
            start = time.perf_counter()
            calls[0]()
            return time.perf_counter() - start
        graph, times = capture(calls), []
        while len(times) < 5 or (sum(times) < 0.01 and len(times) < 50):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times) / len(calls)


def capture(calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """One graph of all calls, run once; the first call also runs before, to compile."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph
