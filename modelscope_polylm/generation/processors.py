"""Logits processors on the device, with fixed shapes: each takes and returns [n, vocabulary] fp32 scores of n rows.

They follow the classes of the same purpose in `transformers.generation.logits_process`, in the order in which
`GenerationMixin._get_logits_processor` applies them. Their values are in the rows, so a captured step serves any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modelscope_polylm.generation.state import NO_TOKEN, BatchState

Processor = Callable[[Tensor, BatchState, Tensor], Tensor]
"""Takes scores [n, vocabulary], the state and the rows [n] int64; returns the new scores."""


def repetition_penalty(scores: Tensor, state: BatchState, rows: Tensor) -> Tensor:
    """RepetitionPenaltyLogitsProcessor (arXiv 1909.05858): tokens of prompt and answer become less probable."""
    # scores: [n, vocabulary], rows: [n]
    ids, penalty = state.ids[rows], state.repetition_penalty[rows, None]
    filled = torch.arange(state.positions, device=scores.device) < state.lengths[rows, None]
    seen = torch.where(filled, ids, ids[:, :1])
    score = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(score < 0, score * penalty, score / penalty))


def no_repeat_ngram(largest: int) -> Processor:
    """NoRepeatNGramLogitsProcessor: a token that would complete an n-gram of prompt or answer again is forbidden.

    Sizes are the rows' own, from 1 to `largest`.
    """

    def process(scores: Tensor, state: BatchState, rows: Tensor) -> Tensor:
        # scores: [n, vocabulary], rows: [n]; window w ends at position w and has the row's n-gram size
        ids, lengths, sizes = state.ids[rows], state.lengths[rows, None].long(), state.ngram_sizes[rows, None]
        ends = torch.arange(state.positions, device=scores.device)
        repeated = (ends < lengths) & (ends >= sizes - 1)
        for back in range(1, largest):
            # the token `back` places before a window's end, and the last tokens in that order
            earlier = ids.roll(back, 1)
            last = ids.gather(1, (lengths - back).clamp(min=0))
            repeated = repeated & ((back >= sizes) | (earlier == last))
        return scores.scatter_add(1, ids, _minus_infinity(repeated, scores))

    return process


class BadWords:
    """NoBadWordsLogitsProcessor: the last token of each sequence is forbidden after its other tokens.

    Args:
        words, length: most sequences of a row, and most tokens of one.
        state: the batch.
    """

    def __init__(self, words: int, length: int, state: BatchState):
        size = (len(state.tokens), words, length)
        # aligned at the end, filled up with NO_TOKEN
        self._words = torch.full(size, NO_TOKEN, dtype=torch.int64, device=state.device)
        self._send = state.send

    def begin(self, rows: Sequence[int], words: Sequence[Sequence[int]]) -> None:
        """Forbid these sequences in these rows."""
        padded = torch.full(self._words.shape[1:], NO_TOKEN, dtype=torch.int64)
        for row, word in zip(padded, words, strict=False):
            row[len(row) - len(word) :] = torch.tensor(list(word))
        self._words[rows[0] : rows[-1] + 1] = self._send(padded)

    def __call__(self, scores: Tensor, state: BatchState, rows: Tensor) -> Tensor:
        """Apply it."""
        # scores: [n, vocabulary], rows: [n]
        words, lengths, ids = self._words[rows], state.lengths[rows].long(), state.ids[rows]
        count = words.shape[2] - 1
        positions = lengths[:, None] - count + torch.arange(count, device=scores.device)
        known = torch.where(positions >= 0, ids.gather(1, positions.clamp(min=0)), NO_TOKEN - 1)
        begins = ((words[..., :-1] == NO_TOKEN) | (words[..., :-1] == known[:, None])).all(-1)
        forbidden = begins & (words[..., -1] != NO_TOKEN)
        last = torch.where(forbidden, words[..., -1], 0)
        return scores.scatter_add(1, last, _minus_infinity(forbidden, scores))


def minimum_length(ends: int) -> Processor:
    """MinLength- and MinNewTokensLengthLogitsProcessor: none of a row's `ends` end tokens before its minimum."""

    def process(scores: Tensor, state: BatchState, rows: Tensor) -> Tensor:
        # scores: [n, vocabulary], rows: [n]
        tokens = state.end_tokens[rows, :ends]
        forbidden = (state.generated(rows) < state.minimums[rows])[:, None] & (tokens != NO_TOKEN)
        return scores.scatter_add(1, tokens.clamp(min=0), _minus_infinity(forbidden, scores))

    return process


def _minus_infinity(where: Tensor, scores: Tensor) -> Tensor:
    # where: [n, m] bool -> [n, m] in the scores' dtype, 0 elsewhere
    return torch.zeros(where.shape, dtype=scores.dtype, device=scores.device).masked_fill_(where, -torch.inf)
