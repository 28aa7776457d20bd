"""A session whose step is one CUDA graph: captured once, replayed for any prompt, length and option value."""

from __future__ import annotations

import threading

import torch

from modelscope_polylm.generation.sampling import TokenSearch
from modelscope_polylm.generation.session import Session

_capture_lock = threading.Lock()


class CapturedSession(Session):
    """Runs its first step as it is, which compiles kernels and sets up libraries; captures the second, replays it."""

    _graph: torch.cuda.CUDAGraph | None = None
    _warm = False

    def step(self) -> None:
        """Run the current tokens and choose those that follow, without the host waiting for anything."""
        if self._graph is not None:
            self._graph.replay()
        elif self._warm:
            self._graph = self._capture()
            self._graph.replay()
        else:
            super().step()
            self._warm = True

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        steps = self.search.steps
        if isinstance(steps, TokenSearch) and steps.sampler is not None:
            graph.register_generator_state(steps.sampler.generator)
        # other threads may allocate while this one captures
        with _capture_lock, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            super().step()
        return graph
