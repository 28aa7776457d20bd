"""Assembles a search from options: the processors, sampler or beams it needs, and the values they read."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from modelscope_polylm.generation import processors
from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import OutputLayer, scalar
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.sampling import Sampler, TokenSearch, sampling_width, warpers
from modelscope_polylm.generation.state import Rows


@dataclasses.dataclass(frozen=True)
class SearchShape:
    """What of the options decides the operations of a step; searches of equal shape can serve each other's calls."""

    rows_per_prompt: int
    beam_rules: tuple[Any, ...] | None
    sampling: tuple[Any, ...] | None
    end_tokens: int
    repetition_penalty: bool
    no_repeat_ngram_size: int
    bad_words: tuple[tuple[int, ...], ...]
    minimum_length: bool

    @classmethod
    def of(cls, options: GenerationOptions, vocabulary: int) -> SearchShape:
        """The shape of a search with these options."""
        beams = options.num_beams > 1
        sampling = (
            (sampling_width(options, vocabulary), tuple(warpers(options).values())) if options.do_sample else None
        )
        ends = options.end_tokens
        words = (tuple(word) for word in options.bad_words_ids or ())
        return cls(
            rows_per_prompt=options.num_beams if beams else options.num_return_sequences,
            beam_rules=(options.beam_rules != "5", options.early_stopping) if beams else None,
            sampling=sampling,
            end_tokens=len(ends),
            repetition_penalty=options.repetition_penalty != 1.0,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            bad_words=tuple(word for word in words if word != ends),
            minimum_length=bool(options.min_new_tokens or options.min_length),
        )


class Search:
    """A `TokenSearch` or `BeamSearch` over `rows`; its values are in device memory, where a later call changes them."""

    def __init__(self, options: GenerationOptions, rows: Rows, embedding: Tensor, vocab_limit: int):
        device = embedding.device
        self._shape = SearchShape.of(options, embedding.shape[0])
        self._repetition_penalty = scalar(1.0, device)
        self._end_tokens = torch.zeros(len(options.end_tokens), dtype=torch.int64, device=device)
        self._pad_token = torch.zeros((), dtype=torch.int64, device=device)
        output = OutputLayer(embedding, vocab_limit, self._processors(device))
        self.steps: TokenSearch | BeamSearch
        if self._shape.beam_rules:
            self.steps = BeamSearch(rows, output, self._end_tokens, options)
        else:
            sampler = Sampler.create(options, embedding.shape[0], device) if options.do_sample else None
            self.steps = TokenSearch(rows, output, self._end_tokens, self._pad_token, sampler)

    def _processors(self, device: torch.device) -> list[processors.Processor]:
        shape = self._shape
        chosen = []
        if shape.repetition_penalty:
            chosen.append(processors.repetition_penalty(self._repetition_penalty))
        if shape.no_repeat_ngram_size:
            chosen.append(processors.no_repeat_ngram(shape.no_repeat_ngram_size))
        if shape.bad_words:
            chosen.append(processors.bad_words(shape.bad_words, device))
        if shape.minimum_length:
            chosen.append(processors.minimum_length(self._end_tokens))
        return chosen

    def begin(self, options: GenerationOptions) -> None:
        """Take the values of a call whose options have this search's shape, and start anew."""
        ends = options.end_tokens
        self._repetition_penalty.fill_(options.repetition_penalty)
        self._end_tokens.copy_(torch.tensor(ends))
        self._pad_token.fill_(ends[0] if options.pad_token_id is None else options.pad_token_id)
        if isinstance(self.steps, BeamSearch):
            self.steps.length_penalty = options.length_penalty
        elif self.steps.sampler is not None:
            self.steps.sampler.update(options)
        self.steps.begin()
