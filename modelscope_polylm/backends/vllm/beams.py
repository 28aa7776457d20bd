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

from modelscope_polylm.backends.base import Completion, Request
from modelscope_polylm.backends.vllm.engine import BackgroundEngine
from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import LMHead
from modelscope_polylm.generation.outputs import beam_completions
from modelscope_polylm.generation.state import IMPOSSIBLE, BatchState, NewRow

Candidates = list[tuple[float, int]]
"""Log-probability and id of the best next tokens of a row, best first."""


async def search_beams(engine: BackgroundEngine, request: Request, vocab_limit: int, unused: int) -> list[Completion]:
    """The best beams of a request.

    Args:
        engine: what runs the steps.
        request: a prompt with several beams.
        vocab_limit: ids at or above it are never generated.
        unused: how many such ids the network knows.
    """
    options, length = request.options, len(request.prompt)
    beams, rows = options.num_beams, torch.arange(options.num_beams)
    state = BatchState(beams, length + request.max_new_tokens, torch.device("cpu"))
    new = NewRow(request.prompt, length, request.max_new_tokens, request.min_new_tokens, options)
    state.begin(rows.tolist(), [new] * beams, [[]] * beams)
    state.begin_beams([rows.tolist()], [options.length_penalty])
    head = RemoteLMHead(vocab_limit, options.end_tokens)
    search = BeamSearch(state, head, beams, len(options.end_tokens), options.beam_rules != "5", options.early_stopping)
    wanted = min(min(search.candidates, vocab_limit) + len(options.end_tokens) + unused, vocab_limit + unused)
    while True:
        head.candidates = await _ask(engine, state, beams, wanted)
        search.select(torch.empty(beams, 0), rows)
        if state.step_output[0, 0]:
            known = int(state.lengths[0]) + 1
            return beam_completions(request, state.finished_beams[:beams].tolist(), state.history[:, :known].tolist())
        state.advance(rows)


class RemoteLMHead(LMHead):
    """Hands out candidates that vLLM has computed.

    Args:
        vocab_limit: ids at or above it are never among them.
        end_tokens: not among them below a row's minimum.

    Attributes:
        candidates: of each row; those of a row that was not asked for are empty.
    """

    def __init__(self, vocab_limit: int, end_tokens: Sequence[int]) -> None:
        super().__init__(torch.empty(0), vocab_limit)
        self._ends = set(end_tokens)
        self.candidates: list[Candidates] = []

    @property
    def reads_ids(self) -> bool:
        """They are sent to vLLM."""
        return True

    def best(self, hidden: Tensor, state: BatchState, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The allowed ones among the candidates; `hidden` [rows, 0] holds nothing."""
        logprobs = torch.full((len(rows), count), IMPOSSIBLE)
        ids = torch.zeros(len(rows), count, dtype=torch.int64)
        short = bool(state.generated(rows)[0] < state.minimums[0])
        for row, candidates in enumerate(self.candidates):
            kept = [(value, id) for value, id in candidates if self._is_allowed(id, short)][:count]
            logprobs[row, : len(kept)] = torch.tensor([value for value, _ in kept])
            ids[row, : len(kept)] = torch.tensor([id for _, id in kept])
        return logprobs, logprobs, ids

    def _is_allowed(self, id: int, is_short: bool) -> bool:
        return id < self.vocab_limit and not (is_short and id in self._ends)


async def _ask(engine: BackgroundEngine, state: BatchState, beams: int, wanted: int) -> list[Candidates]:
    """The candidates of each beam; at the first step all beams are equal, and one is asked for."""
    length = int(state.lengths[0])
    asked = 1 if length == int(state.prompt_lengths[0]) else beams
    texts = state.ids[:asked, :length].tolist()
    found = await asyncio.gather(*(_candidates(engine, ids, wanted) for ids in texts))
    return [*found, *([] for _ in range(beams - asked))]


async def _candidates(engine: BackgroundEngine, prompt: list[int], count: int) -> Candidates:
    """The `count` best next tokens with their log-probabilities, best first."""
    fields = {"max_tokens": 1, "temperature": 0.0, "logprobs": count, "ignore_eos": True, "detokenize": False}
    found: dict[int, Any] = {}
    async for part in engine.outputs(prompt, fields, streaming=False):
        found = part.logprobs[0]
    return sorted(((entry.logprob, id) for id, entry in found.items()), key=lambda pair: (-pair[0], pair[1]))
