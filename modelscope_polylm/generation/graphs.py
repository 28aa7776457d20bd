"""Work that a GPU replays as CUDA graphs: the host launches one thing where it would launch hundreds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch

MAX_GRAPHS = 64
"""At most so many are kept; the one that was not used for longest goes first."""

_capture_lock = threading.Lock()


class GraphCache:
    """Runs pieces of work as they are the first time, captures them the second time, and replays them from then on.

    The first run compiles kernels and sets up libraries. A piece of work reads and writes the same memory each time.
    On a CPU everything runs as it is. All graphs share their temporary memory, so what they leave for later must be
    written to tensors that exist outside of them.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device):
        self._captures = device.type == "cuda"
        self._warm: set[Hashable] = set()
        # the one used last stands last
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run a piece of work; equal keys are the same work on the same memory."""
        if not self._captures or key not in self._warm:
            work()
            self._warm.add(key)
            return
        graph = self._graphs.pop(key, None) or self._captured(work)
        self._graphs[key] = graph
        if len(self._graphs) > MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        graph.replay()

    def clear(self) -> None:
        """Drop all graphs, because memory that they use was moved."""
        self._graphs.clear()
        self._pool = None

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # a pool goes with the last of its graphs
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # other threads may allocate while this one captures
        with _capture_lock, torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph
