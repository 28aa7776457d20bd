"""Final hidden states -> scores of continuations: fused with the choice where nothing has to see all logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelscope_polylm.generation.processors import Processor
from modelscope_polylm.generation.state import BatchState
from modelscope_polylm.network.kernels.lm_head import (
    best_tokens,
    lm_head_logits,
    lm_head_topk,
    log_sum_exp,
    topk_of_logits,
)
from modelscope_polylm.network.quantization import Weight

LOGITS_AT_ONCE = 1 << 26
"""Most logits of scored tokens that exist together: 256 MiB, 256 tokens of PolyLM's vocabulary."""
SCORED_AT_ONCE = 1024
"""Most tokens that are scored together."""


class LMHead:
    """The tied output layer and the logits processors after it.

    Args:
        embedding: [vocabulary, hidden_size], the tied weights.
        vocab_limit: the tokenizer's size; ids at or above it are never generated.
        processors: applied in order; with none, the logits are never written out.
    """

    def __init__(self, embedding: Weight, vocab_limit: int, processors: Sequence[Processor] = ()):
        self.embedding = embedding
        self.vocab_limit = vocab_limit
        self.processors = processors

    @property
    def reads_ids(self) -> bool:
        """Whether the ids of all rows are read, which beam search then keeps in order."""
        return bool(self.processors)

    def logits(self, hidden: Tensor, state: BatchState, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits before and after the processors, each [n, vocabulary] fp32."""
        # hidden: [n, hidden_size], rows: [n]
        logits = lm_head_logits(hidden, self.embedding, self.vocab_limit)
        return logits, self._process(logits, state, rows)

    def greedy(self, hidden: Tensor, state: BatchState, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable token [n] int64 and the log-probability [n] that the model gave it."""
        # hidden: [n, hidden_size], rows: [n]
        if not self.processors:
            logprobs, _, tokens = self.best(hidden, state, rows, 1)
            return tokens[:, 0].long(), logprobs[:, 0]
        logits, processed = self.logits(hidden, state, rows)
        tokens = processed.argmax(-1, keepdim=True)
        return tokens[:, 0], token_logprobs(logits, tokens[:, 0])

    def best(self, hidden: Tensor, state: BatchState, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each row, as beam search counts them: processors see log-probabilities.

        Returns:
            processed log-probabilities and the model's own, [n, count] fp32, best first; ids [n, count] int32.
        """
        # hidden: [n, hidden_size], rows: [n]
        if not self.processors:
            values, ids, log_sums = lm_head_topk(hidden, self.embedding, count, self.vocab_limit)
            logprobs = values - log_sums[:, None]
            return logprobs, logprobs, ids
        logits = lm_head_logits(hidden, self.embedding, self.vocab_limit)
        logprobs = logits - log_sum_exp(logits)[:, None]
        scores, ids = best_tokens(self._process(logprobs, state, rows), count)
        return scores, logprobs.gather(1, ids.long()), ids

    def _process(self, scores: Tensor, state: BatchState, rows: Tensor) -> Tensor:
        for processor in self.processors:
            scores = processor(scores, state, rows)
        return scores


def score_tokens(hidden: Tensor, embedding: Weight, tokens: Tensor, best: int, vocab_limit: int) -> Tensor:
    """How probable given tokens are, and which tokens are the most probable ones.

    Args:
        hidden: [n, hidden_size], the final hidden states before these tokens.
        embedding: [vocabulary, hidden_size], the tied weights.
        tokens: [n] int64, below `vocab_limit`.
        best: how many most probable tokens are wanted.
        vocab_limit: ids at or above it have no probability.

    Returns:
        [n, 1 + 2 * best] fp32: the token's log-probability, the best log-probabilities, best first, and their ids.
    """
    # hidden: [n, hidden_size], tokens: [n] -> [n, 1 + 2 * best]
    parts = []
    size = min(SCORED_AT_ONCE, max(LOGITS_AT_ONCE // len(embedding) // 64 * 64, 64))
    for chunk, own in zip(hidden.split(size), tokens.split(size), strict=True):
        logits = lm_head_logits(chunk, embedding, vocab_limit)
        values, ids, log_sums = topk_of_logits(logits, best)
        scores = torch.cat((logits.gather(1, own[:, None]), values), 1) - log_sums[:, None]
        parts.append(torch.cat((scores, ids.float()), 1))
    return torch.cat(parts)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-probability [n] fp32 of a token [n] int64 of each row of logits [n, vocabulary]."""
    # logits: [n, vocabulary], tokens: [n] -> [n]
    return logits.gather(1, tokens[:, None])[:, 0] - log_sum_exp(logits)
