"""What a GPU replays as CUDA graphs: a session's step, and the prefill of a short prompt."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.runner import Session
from modelscope_polylm.generation.sampling import TokenSearch
from modelscope_polylm.generation.state import Rows
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.kv_cache import SCRATCH_SLOT, KVCache

SHORT_PROMPTS = (64, 256)
"""Tokens of the captured prefills; a GPU runs so many in less time than the host needs to launch their kernels."""

_capture_lock = threading.Lock()


class CapturedSession(Session):
    """Captures its step once and replays it for any prompt, length and option value.

    It runs the first step as it is, which compiles kernels and sets up libraries, and captures the second.
    """

    _graph: torch.cuda.CUDAGraph | None = None
    _warm = False

    def __init__(self, short_prefills: ShortPrefills, options: GenerationOptions, rows: Rows, vocab_limit: int):
        super().__init__(short_prefills.decoder, options, rows, short_prefills.cache, vocab_limit)
        self._short_prefills = short_prefills

    def step(self) -> None:
        """Run the current tokens and choose those that follow, without the host waiting for anything."""
        if self._graph is not None:
            self._graph.replay()
        elif self._warm:
            graph, steps = torch.cuda.CUDAGraph(), self.search.steps
            if isinstance(steps, TokenSearch) and steps.sampler is not None:
                graph.register_generator_state(steps.sampler.generator)
            _capture(graph, super().step)
            self._graph = graph
            graph.replay()
        else:
            super().step()
            self._warm = True

    def _run_prompts(self, tokens: Tensor, slots: Tensor, lengths: Tensor) -> Tensor:
        hidden = self._short_prefills.run(tokens, slots, lengths)
        return super()._run_prompts(tokens, slots, lengths) if hidden is None else hidden


class ShortPrefills:
    """Replays the prefill of a short prompt into a cache; all of SHORT_PROMPTS are captured at the first call."""

    def __init__(self, decoder: Decoder, cache: KVCache):
        self.decoder, self.cache = decoder, cache

    def run(self, tokens: Tensor, slots: Tensor, lengths: Tensor) -> Tensor | None:
        """As `Decoder.prefill`; None where it has none for these prompts."""
        # tokens, slots: [prompts, length], lengths: [prompts] -> [prompts, width]
        prompts, length = tokens.shape
        fitting = (prefill for longest, prefill in self._prefills.items() if prompts == 1 and length <= longest)
        prefill = next(fitting, None)
        return None if prefill is None else prefill.run(tokens, slots, lengths)

    @functools.cached_property
    def _prefills(self) -> dict[int, _CapturedPrefill]:
        known = (longest for longest in SHORT_PROMPTS if longest <= self.decoder.config.max_positions)
        return {longest: _CapturedPrefill(self.decoder, self.cache, longest) for longest in known}


class _CapturedPrefill:
    """Prefill of one prompt, padded to `longest` tokens."""

    def __init__(self, decoder: Decoder, cache: KVCache, longest: int):
        self._tokens = torch.zeros(1, longest, dtype=torch.int64, device=decoder.device)
        self._slots = torch.full_like(self._tokens, SCRATCH_SLOT)
        self._lengths = torch.ones(1, dtype=torch.int32, device=decoder.device)
        self._graph = torch.cuda.CUDAGraph()
        prefill = functools.partial(decoder.prefill, self._tokens, self._slots, cache, self._lengths)
        prefill()
        self._hidden: Tensor = _capture(self._graph, prefill)

    def run(self, tokens: Tensor, slots: Tensor, lengths: Tensor) -> Tensor:
        # tokens, slots: [1, length], lengths: [1] -> [1, width], until the next call
        length = tokens.shape[1]
        self._slots.fill_(SCRATCH_SLOT)
        self._tokens[:, :length], self._slots[:, :length] = tokens, slots
        self._lengths.copy_(lengths)
        self._graph.replay()
        return self._hidden


def _capture(graph: torch.cuda.CUDAGraph, work: Callable[[], Any]) -> Any:
    # other threads may allocate while this one captures
    with _capture_lock, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        return work()
