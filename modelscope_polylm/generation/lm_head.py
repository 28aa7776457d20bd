"""Final hidden states -> scores of continuations: fused with the search where nothing has to see all logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelscope_polylm.generation.processors import Processor
from modelscope_polylm.generation.state import Rows
from modelscope_polylm.network.kernels.lm_head import output_best, output_logits


class OutputLayer:
    """The tied output layer and the logits processors behind it.

    Args:
        embedding: [vocabulary, width], the tied weights.
        vocab_limit: the tokenizer's size; ids at or above it are never generated.
        processors: applied in order; with none, the logits are never written out.
    """

    def __init__(self, embedding: Tensor, vocab_limit: int, processors: Sequence[Processor] = ()):
        self.embedding = embedding
        self.vocab_limit = vocab_limit
        self.processors = processors

    @property
    def reads_ids(self) -> bool:
        """Whether the ids of all rows are read, which beam search then keeps in order."""
        return bool(self.processors)

    def logits(self, hidden: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Logits before and behind the processors, each [rows, vocabulary] fp32."""
        # hidden: [rows, width]
        logits = output_logits(hidden, self.embedding, self.vocab_limit)
        return logits, self._process(logits, rows)

    def greedy(self, hidden: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The most probable token [rows] int64 and the log-probability [rows] that the model gave it."""
        # hidden: [rows, width]
        if not self.processors:
            logprobs, _, tokens = self.best(hidden, rows, 1)
            return tokens[:, 0].long(), logprobs[:, 0]
        logits, processed = self.logits(hidden, rows)
        tokens = processed.argmax(-1, keepdim=True)
        return tokens[:, 0], (logits.gather(1, tokens)[:, 0] - logits.logsumexp(-1))

    def best(self, hidden: Tensor, rows: Rows, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each row, as beam search counts them: processors see log-probabilities.

        Returns:
            processed log-probabilities and the model's own, [rows, count] fp32, best first; ids [rows, count], int32
            or int64.
        """
        # hidden: [rows, width]
        if not self.processors:
            values, ids, log_sum_exp = output_best(hidden, self.embedding, count, self.vocab_limit)
            logprobs = values - log_sum_exp[:, None]
            return logprobs, logprobs, ids
        logprobs = output_logits(hidden, self.embedding, self.vocab_limit).log_softmax(-1)
        scores, ids = self._process(logprobs, rows).topk(count)
        return scores, logprobs.gather(1, ids), ids

    def _process(self, scores: Tensor, rows: Rows) -> Tensor:
        for processor in self.processors:
            scores = processor(scores, rows)
        return scores


def is_one_of(tokens: Tensor, ends: Tensor) -> Tensor:
    """Whether each of `tokens` (any shape) is among `ends` [n]."""
    return (tokens[..., None] == ends).any(-1)


def scalar(value: float, device: torch.device) -> Tensor:
    """A number on the device, so that a captured step reads its present value."""
    return torch.tensor(value, dtype=torch.float32, device=device)
