"""Final hidden states -> scores of continuations: fused with the choice where nothing has to see all logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from modelscope_polylm.generation.processors import Processor
from modelscope_polylm.generation.state import BatchState
from modelscope_polylm.network.kernels.lm_head import lm_head_logits, lm_head_topk


class LMHead:
    """The tied output layer and the logits processors after it.

    Args:
        embedding: [vocabulary, hidden_size], the tied weights.
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
            processed log-probabilities and the model's own, [n, count] fp32, best first; ids [n, count], int32 or
            int64.
        """
        # hidden: [n, hidden_size], rows: [n]
        if not self.processors:
            values, ids, log_sum_exp = lm_head_topk(hidden, self.embedding, count, self.vocab_limit)
            logprobs = values - log_sum_exp[:, None]
            return logprobs, logprobs, ids
        logprobs = lm_head_logits(hidden, self.embedding, self.vocab_limit).log_softmax(-1)
        scores, ids = self._process(logprobs, state, rows).topk(count)
        return scores, logprobs.gather(1, ids), ids

    def _process(self, scores: Tensor, state: BatchState, rows: Tensor) -> Tensor:
        for processor in self.processors:
            scores = processor(scores, state, rows)
        return scores


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-probability [n] fp32 of a token [n] int64 of each row of logits [n, vocabulary]."""
    # logits: [n, vocabulary], tokens: [n] -> [n]
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
