"""Logits processors on the device, with fixed shapes: each takes and returns [rows, vocabulary] fp32 scores.

They follow the classes of the same purpose in `transformers.generation.logits_process`, in the order in which
`GenerationMixin._get_logits_processor` applies them. Values are device scalars, so that a captured step serves any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modelscope_polylm.generation.state import Rows

Processor = Callable[[Tensor, Rows], Tensor]


def repetition_penalty(penalty: Tensor) -> Processor:
    """RepetitionPenaltyLogitsProcessor (arXiv 1909.05858): tokens of prompt and answer become less probable."""

    def process(scores: Tensor, rows: Rows) -> Tensor:
        # scores: [rows, vocabulary]
        filled = torch.arange(rows.positions, device=scores.device) < rows.lengths[:, None]
        seen = torch.where(filled, rows.ids, rows.ids[:, :1])
        score = scores.gather(1, seen)
        return scores.scatter(1, seen, torch.where(score < 0, score * penalty, score / penalty))

    return process


def no_repeat_ngram(size: int) -> Processor:
    """NoRepeatNGramLogitsProcessor: a token that would complete an n-gram of prompt or answer again is forbidden."""

    def process(scores: Tensor, rows: Rows) -> Tensor:
        # scores: [rows, vocabulary]; window w is ids[:, w : w + size]
        windows = max(rows.positions - size + 1, 0)
        starts = torch.arange(windows, device=scores.device)
        repeated = (starts + size <= rows.lengths[:, None]) & (rows.lengths[:, None] >= size)
        for offset in range(size - 1):
            last = rows.ids.gather(1, (rows.lengths.long()[:, None] - size + 1 + offset).clamp(min=0))
            repeated = repeated & (rows.ids[:, offset : offset + windows] == last)
        forbidden = torch.where(repeated, -torch.inf, 0.0)
        return scores.scatter_add(1, rows.ids[:, size - 1 : size - 1 + windows], forbidden)

    return process


def bad_words(words: Sequence[Sequence[int]], device: torch.device) -> Processor:
    """NoBadWordsLogitsProcessor: the last token of each sequence is forbidden behind its other tokens."""
    beginnings = [torch.tensor(list(word[:-1]), dtype=torch.int64, device=device) for word in words]

    def process(scores: Tensor, rows: Rows) -> Tensor:
        # scores: [rows, vocabulary]
        scores = scores.clone()
        for word, beginning in zip(words, beginnings, strict=True):
            before = len(beginning)
            positions = rows.lengths.long()[:, None] - before + torch.arange(before, device=scores.device)
            matches = (rows.ids.gather(1, positions.clamp(min=0)) == beginning).all(1) & (rows.lengths >= before)
            last = word[-1]
            scores[:, last] = torch.where(matches, -torch.inf, scores[:, last])
        return scores

    return process


def minimum_length(end_tokens: Tensor) -> Processor:
    """MinLength- and MinNewTokensLengthLogitsProcessor: no end token before `rows.minimums` new tokens."""

    def process(scores: Tensor, rows: Rows) -> Tensor:
        # scores: [rows, vocabulary]; end_tokens: [n]
        too_short = (rows.generated() < rows.minimums)[:, None]
        return scores.index_copy(1, end_tokens, torch.where(too_short, -torch.inf, scores[:, end_tokens]))

    return process
