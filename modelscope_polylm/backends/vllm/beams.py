"""Beam search over vLLM: it computes the candidates of each step, and the native backend's search chooses among them.

vLLM's own beam search is not used: it knows no `early_stopping`, counts ends of any rank among the candidates, and
goes on until the last token, so its answers are not those of transformers in general. Like it, each step asks for one
token of every beam; what the beams share is read from vLLM's prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modelscope_polylm.backends.base import Answer
from modelscope_polylm.backends.vllm.engine import BackgroundEngine
from modelscope_polylm.generation.beam import IMPOSSIBLE, BeamSearch
from modelscope_polylm.generation.lm_head import OutputLayer
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import BeamCollector
from modelscope_polylm.generation.state import Request, Rows


def search_beams(
    engine: BackgroundEngine, requests: Sequence[Request], options: GenerationOptions, vocab_limit: int, unused: int
) -> list[list[Answer]]:
    """The best beams of each request.

    Args:
        engine: what runs the steps.
        requests: the prompts.
        options: checked options with several beams.
        vocab_limit: ids at or above it are never generated.
        unused: how many such ids the network knows.
    """
    positions = max(len(request.prompt) + request.limit for request in requests)
    rows = Rows(len(requests), options.num_beams, positions, torch.device("cpu"))
    rows.begin(requests)
    layer = RemoteOutputLayer(engine, options.end_tokens, vocab_limit, unused)
    search = BeamSearch(rows, layer, torch.tensor(options.end_tokens), options)
    search.begin()
    collector = BeamCollector(requests, search, options)
    no_hidden = torch.empty(len(requests) * options.num_beams, 0)
    while True:
        search.select(no_hidden)
        collector.collect(search.report)
        if collector.finished:
            return collector.answers(rows)
        rows.advance()


class RemoteOutputLayer(OutputLayer):
    """Asks vLLM for the best continuations instead of computing them from hidden states.

    Args:
        engine: what computes them.
        end_tokens: not among them below a row's minimum.
        vocab_limit: ids at or above it are never among them.
        unused: how many such ids the network knows.
    """

    def __init__(self, engine: BackgroundEngine, end_tokens: Sequence[int], vocab_limit: int, unused: int) -> None:
        super().__init__(torch.empty(0), vocab_limit)
        self._engine, self._ends, self._unused = engine, set(end_tokens), unused

    @property
    def reads_ids(self) -> bool:
        """See `OutputLayer.reads_ids`: `best` hands them over."""
        return True

    def best(self, hidden: Tensor, rows: Rows, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `OutputLayer.best`; `hidden` [rows, 0] holds nothing."""
        logprobs = torch.full((len(hidden), count), IMPOSSIBLE)
        ids = torch.zeros(len(hidden), count, dtype=torch.int64)
        asked = self._differing(rows)
        found = self._engine.submit(self._ask(rows, asked, count)).result()
        short = (rows.generated() < rows.minimums).tolist()
        for row, candidates in zip(asked, found, strict=True):
            kept = [(value, id) for value, id in candidates if self._is_allowed(id, short[row])][:count]
            logprobs[row, : len(kept)] = torch.tensor([value for value, _ in kept])
            ids[row, : len(kept)] = torch.tensor([id for _, id in kept])
        return logprobs, logprobs, ids

    def _is_allowed(self, id: int, is_short: bool) -> bool:
        return id < self.vocab_limit and not (is_short and id in self._ends)

    def _differing(self, rows: Rows) -> list[int]:
        """Rows whose candidates count: of prompts that are not done, and at the first step one of each."""
        is_first, is_done = (rows.generated() == 0).tolist(), rows.finished.tolist()
        every = range(rows.prompts * rows.group)
        return [row for row in every if not is_done[row] and not (is_first[row] and row % rows.group)]

    async def _ask(self, rows: Rows, asked: Sequence[int], count: int) -> list[list[tuple[float, int]]]:
        known = self.vocab_limit + self._unused
        wanted = min(count + len(self._ends) + self._unused, known)
        return await asyncio.gather(
            *(self._candidates(rows.ids[row, : int(rows.lengths[row])].tolist(), wanted) for row in asked)
        )

    async def _candidates(self, prompt: list[int], count: int) -> list[tuple[float, int]]:
        """The `count` best next tokens with their log-probabilities, best first."""
        fields = {"max_tokens": 1, "temperature": 0.0, "logprobs": count, "ignore_eos": True, "detokenize": False}
        found: dict[int, Any] = {}
        async for completion in self._engine.outputs(prompt, fields, streaming=False):
            found = completion.logprobs[0]
        return sorted(((entry.logprob, id) for id, entry in found.items()), key=lambda pair: (-pair[0], pair[1]))
