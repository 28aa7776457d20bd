"""Which operations choose a request's tokens: the logits processors and the sampler or beam search that it needs.

Requests whose options need the same operations share a strategy, and in a step one launch of it serves them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import LMHead
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.processors import (
    BadWords,
    Processor,
    minimum_length,
    no_repeat_ngram,
    repetition_penalty,
)
from modelscope_polylm.generation.requests import Request
from modelscope_polylm.generation.sampling import Sampler, TokenSelector, sampling_width
from modelscope_polylm.generation.state import BatchState
from modelscope_polylm.network.quantization import Weight


@dataclasses.dataclass(frozen=True)
class StrategyKey:
    """What of a request's options decides the operations of a step. Numbers are rounded up to powers of two.

    Attributes:
        beams: rows of a group of beams; None without beam search.
        counts_prompt, early_stopping: rules of beam search.
        samples: whether tokens are drawn; sampling_width, typical: see `Sampler`.
        ends: end tokens that are compared.
        repetition_penalty, minimum_length: whether these processors run.
        ngram_size: the largest that is forbidden, 0 for none.
        bad_words: how many sequences are forbidden, and the tokens of the longest.
    """

    beams: int | None
    counts_prompt: bool
    early_stopping: bool | str
    samples: bool
    sampling_width: int | None
    typical: bool
    ends: int
    repetition_penalty: bool
    minimum_length: bool
    ngram_size: int
    bad_words: tuple[int, int]

    @classmethod
    def of(cls, request: Request, vocabulary: int) -> StrategyKey:
        """The key of a request to a network with so many tokens."""
        options, beams = request.options, request.options.num_beams > 1
        words = bad_words(options)
        return cls(
            beams=options.num_beams if beams else None,
            counts_prompt=beams and options.beam_rules != "5",
            early_stopping=beams and options.early_stopping,
            samples=options.do_sample,
            sampling_width=sampling_width(options, vocabulary) if options.do_sample else None,
            typical=options.do_sample and options.typical_p < 1,
            # beam search looks at so many more candidates, so its number stays exact
            ends=len(options.end_tokens) if beams else _power_of_two(len(options.end_tokens)),
            repetition_penalty=options.repetition_penalty != 1.0,
            minimum_length=request.min_new_tokens > 0,
            ngram_size=_power_of_two(options.no_repeat_ngram_size),
            bad_words=(_power_of_two(len(words)), _power_of_two(max(map(len, words), default=0))),
        )


class Strategy:
    """Chooses tokens for the rows of requests with one key.

    Args:
        key: which operations.
        state: the batch.
        embedding: [vocabulary, hidden_size], the tied output layer.
        vocab_limit: ids at or above it are never generated.
    """

    def __init__(self, key: StrategyKey, state: BatchState, embedding: Weight, vocab_limit: int):
        self._bad_words = BadWords(*key.bad_words, state) if key.bad_words[0] else None
        lm_head = LMHead(embedding, vocab_limit, self._processors(key))
        self._selector: BeamSearch | TokenSelector
        if key.beams is not None:
            self._selector = BeamSearch(state, lm_head, key.beams, key.ends, key.counts_prompt, key.early_stopping)
        else:
            sampler = Sampler(key.sampling_width, key.typical) if key.samples else None
            self._selector = TokenSelector(state, lm_head, sampler)

    def _processors(self, key: StrategyKey) -> list[Processor]:
        chosen: list[Processor] = []
        if key.repetition_penalty:
            chosen.append(repetition_penalty)
        if key.ngram_size:
            chosen.append(no_repeat_ngram(key.ngram_size))
        if self._bad_words is not None:
            chosen.append(self._bad_words)
        if key.minimum_length:
            chosen.append(minimum_length(key.ends))
        return chosen

    def begin(self, rows: Sequence[int], options: GenerationOptions) -> None:
        """Take what the rows' buffers do not hold of a new request's options."""
        if self._bad_words is not None:
            self._bad_words.begin(rows, bad_words(options))

    def select(self, hidden: Tensor, rows: Tensor) -> None:
        """Choose the next token of each row, and fill in the step's output.

        Args:
            hidden: [n, hidden_size], the network's results.
            rows: [n] int64, the rows of the batch that they belong to; the beams of a group one after the other.
        """
        # hidden: [n, hidden_size], rows: [n]
        self._selector.select(hidden, rows)


def bad_words(options: GenerationOptions) -> list[tuple[int, ...]]:
    """The sequences that are never generated; the end token alone is not among them, as in transformers."""
    words = (tuple(word) for word in options.bad_words_ids or ())
    return [word for word in words if word != options.end_tokens]


def _power_of_two(number: int) -> int:
    # 0 stays 0
    return 1 << (number - 1).bit_length() if number else 0
