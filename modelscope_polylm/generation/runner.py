"""One batch on the device: prefill, then one decode step at a time, network and search together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.search import Search
from modelscope_polylm.generation.state import Request, Rows
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.kv_cache import KVCache

PREFILL_TOKENS = 8192
"""Prompts are run in chunks of about this many tokens, padding included: it bounds the memory of activations."""


class Session:
    """Buffers for `rows` and a search over them; one call at a time.

    Args:
        decoder: the network.
        options: decide the shape of the search; every call's options must have the same `SearchShape`.
        rows: the batch's buffers.
        cache: enough slots for the batch.
        vocab_limit: ids at or above it are never generated.
    """

    def __init__(self, decoder: Decoder, options: GenerationOptions, rows: Rows, cache: KVCache, vocab_limit: int):
        self.decoder, self.rows, self.cache = decoder, rows, cache
        self.search = Search(options, rows, decoder.embedding, vocab_limit)

    def begin(self, requests: Sequence[Request], options: GenerationOptions) -> None:
        """Prefill the prompts and choose the first tokens."""
        self.rows.begin(requests)
        self.search.begin(options)
        size = (self.rows.prompts, self.decoder.config.hidden_size)
        hidden = torch.zeros(size, dtype=self.decoder.dtype, device=self.decoder.device)
        for first, chunk in prefill_chunks(requests):
            hidden[first : first + len(chunk)] = self._prefill(first, chunk)
        self.search.steps.select(hidden.repeat_interleave(self.rows.group, dim=0))

    def _prefill(self, first: int, requests: Sequence[Request]) -> Tensor:
        # -> [requests, width], the last hidden state of each prompt
        group = self.rows.group
        longest = max(len(request.prompt) for request in requests)
        rows = slice(first * group, (first + len(requests)) * group, group)
        # what stands behind a shorter prompt's end goes to slots of its answer, which are written again before they
        # are read, or to the scratch slot
        slots = self.rows.slot_table[rows, :longest].long()
        return self._run_prompts(self.rows.ids[rows, :longest], slots, self.rows.prompt_lengths[rows])

    def _run_prompts(self, tokens: Tensor, slots: Tensor, lengths: Tensor) -> Tensor:
        # tokens, slots: [prompts, length], lengths: [prompts] -> [prompts, width]
        return self.decoder.prefill(tokens, slots, self.cache, lengths)

    def step(self) -> None:
        """Run the current tokens and choose those that follow."""
        rows = self.rows
        hidden = self.decoder.decode(
            rows.tokens, rows.lengths, rows.slot_table, rows.prompt_lengths, rows.group, self.cache
        )
        rows.advance()
        self.search.steps.select(hidden)


def prefill_chunks(requests: Sequence[Request]) -> Iterator[tuple[int, Sequence[Request]]]:
    """Runs of consecutive requests of at most PREFILL_TOKENS padded tokens, with the index of the first."""
    first, longest = 0, 0
    for index, request in enumerate(requests):
        longest = max(longest, len(request.prompt))
        if index > first and longest * (index + 1 - first) > PREFILL_TOKENS:
            yield first, requests[first:index]
            first, longest = index, len(request.prompt)
    yield first, requests[first:]
