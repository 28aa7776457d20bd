"""Greedy search and sampling on the device, one token of every row at a time.

Random numbers come from a counter: a row's seed, the position and the token id decide each of them (as in
"Parallel random numbers: as easy as 1, 2, 3", SC 2011), so a sample does not depend on the rows next to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.generation.lm_head import LMHead, token_logprobs
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import BatchState
from modelscope_polylm.network.kernels.lm_head import best_tokens

SMALLEST_WIDTH = 64
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""Constants of splitmix64, whose output function turns a counter into random bits."""


class TokenSelector:
    """Chooses the next token of every row.

    Args:
        state: the batch.
        lm_head: makes the scores.
        sampler: draws the tokens; None takes the most probable ones.
    """

    def __init__(self, state: BatchState, lm_head: LMHead, sampler: Sampler | None):
        self._state, self._lm_head, self._sampler = state, lm_head, sampler

    def select(self, hidden: Tensor, rows: Tensor) -> None:
        """Choose the tokens that follow, and note which rows are finished."""
        # hidden: [n, hidden_size], rows: [n] int64
        tokens, logprobs = self._choose(hidden, rows)
        self._state.append(rows, tokens, logprobs)

    def _choose(self, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # hidden: [n, hidden_size], rows: [n] -> [n] int64, [n] fp32
        if self._sampler is None:
            return self._lm_head.greedy(hidden, self._state, rows)
        logits, processed = self._lm_head.logits(hidden, self._state, rows)
        tokens = self._sampler.draw(processed, self._state, rows)
        return tokens, token_logprobs(logits, tokens)


class Sampler:
    """Draws from what transformers' warpers leave, in their order: temperature, top_k, top_p, min_p, typical_p.

    Args:
        width: how many of the best tokens are kept and sorted; None keeps all, unsorted, and applies temperature alone.
        typical: whether any row uses typical_p.
    """

    def __init__(self, width: int | None, typical: bool):
        self._width, self._typical = width, typical

    def draw(self, logits: Tensor, state: BatchState, rows: Tensor) -> Tensor:
        """One token of each row, [n] int64."""
        # logits: [n, vocabulary], rows: [n]
        scores, ids = self.candidates(logits, state, rows)
        if ids is None:
            ids = torch.arange(scores.shape[1], device=scores.device)[None]
        # the largest of log p + Gumbel noise is distributed as p (Gumbel-max trick)
        noise = gumbel_noise(state.seeds[rows, None], state.lengths[rows, None].long(), ids)
        drawn = (scores.double() + noise).argmax(-1, keepdim=True)
        return ids.expand(scores.shape).gather(1, drawn)[:, 0]

    def candidates(self, logits: Tensor, state: BatchState, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is drawn from: scores [n, width], best first, excluded ones -inf; ids, None for all in order."""
        # logits: [n, vocabulary], rows: [n]
        scores = logits / state.temperature[rows, None]
        if self._width is None:
            return scores, None
        scores, ids = best_tokens(scores, self._width)
        rank = torch.arange(self._width, device=scores.device)
        top_k, top_p, min_p = state.top_k[rows, None], state.top_p[rows, None], state.min_p[rows, None]
        scores = scores.masked_fill((rank >= top_k) & (top_k > 0), -torch.inf)
        shares = scores.softmax(-1)
        too_many = (_sums_before(shares) >= top_p) & (rank > 0) & (top_p < 1)
        scores = scores.masked_fill(too_many, -torch.inf)
        shares = scores.softmax(-1)
        scores = scores.masked_fill(shares < min_p * shares[:, :1], -torch.inf)
        return (_typical(scores, state.typical_p[rows, None]) if self._typical else scores), ids.long()


def gumbel_noise(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel numbers [n, m] fp64 for seeds [n, 1], positions [n, 1] and token ids [n or 1, m]."""
    bits = _mix(_mix(_mix(seeds) + positions) + ids)
    # 53 random bits, between 0 and 1 and never equal to either
    uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)
    return -(-uniform.log()).log()


def row_seed(seed: int, sample: int) -> int:
    """The seed of one of a request's samples, of which the first has the request's own."""
    mixed = (seed + sample * GOLDEN) & ((1 << 64) - 1)
    return mixed - (1 << 64) if mixed >= 1 << 63 else mixed


def sampling_width(options: GenerationOptions, vocabulary: int) -> int | None:
    """How many of the best tokens have to be sorted; widths are powers of two, so that few graphs serve all top_k."""
    if options.top_k == 0 and options.top_p >= 1 and not options.min_p and options.typical_p >= 1:
        return None
    if options.top_k == 0:
        return vocabulary
    return min(vocabulary, max(SMALLEST_WIDTH, 1 << (options.top_k - 1).bit_length()))


def _mix(values: Tensor) -> Tensor:
    # splitmix64: int64 products wrap, and a shift keeps the sign, which the masks take away
    values = values + GOLDEN
    values = (values ^ ((values >> 30) & ((1 << 34) - 1))) * MIX[0]
    values = (values ^ ((values >> 27) & ((1 << 37) - 1))) * MIX[1]
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def _typical(scores: Tensor, mass: Tensor) -> Tensor:
    # scores: [n, width], mass: [n, 1]; TypicalLogitsWarper
    logprobs = scores.log_softmax(-1)
    entropy = (logprobs.exp() * -logprobs).nansum(-1, keepdim=True, dtype=torch.float64)
    order = (logprobs + entropy.float()).abs().sort(dim=-1, stable=True).indices
    shares = scores.gather(1, order).softmax(-1)
    kept = (_sums_before(shares) < mass) | (torch.arange(scores.shape[1], device=scores.device) == 0)
    excluded = ~torch.zeros_like(kept).scatter(1, order, kept)
    return scores.masked_fill(excluded & (mass < 1), -torch.inf)


def _sums_before(shares: Tensor) -> Tensor:
    # shares: [n, width] fp32 -> [n, width] fp64: of all before each, in fp64, as the order of sums changes with n
    wide = shares.double()
    return wide.cumsum(-1) - wide
