"""The rows of one batch on the device: tokens, lengths and cache slots, in buffers whose shapes never change."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from modelscope_polylm.network.kv_cache import SCRATCH_SLOT


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and how far it may grow.

    Attributes:
        prompt: its token ids, at least one.
        limit: most tokens to add, at least 1.
        minimum: fewest tokens to add before an end token is allowed.
    """

    prompt: Sequence[int]
    limit: int
    minimum: int = 0

    def slots(self, group: int) -> int:
        """Cache slots that it needs: the prompt once, the answer for each row of the group."""
        return len(self.prompt) + group * self.limit


class Rows:
    """`prompts * group` rows; the rows of a group (beams or samples) share their prompt's cache slots.

    Attributes:
        tokens: [rows] int64, the tokens chosen last.
        ids: [rows, positions] int64, prompt and answer so far.
        logprobs: [rows, positions] fp32, log-probability of each answer token, at its position.
        lengths: [rows] int32, tokens in the cache, the position of the next token.
        prompt_lengths, limits, minimums: [rows] int32, see `Request`.
        slot_table: [rows, positions] int32, the cache slot of each position.
        finished: [rows] bool.
    """

    def __init__(self, prompts: int, group: int, positions: int, device: torch.device):
        rows = prompts * group
        self.prompts, self.group, self.positions = prompts, group, positions
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.ids = torch.zeros(rows, positions, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(rows, positions, device=device)
        self.slot_table = torch.full((rows, positions), SCRATCH_SLOT, dtype=torch.int32, device=device)
        self.finished = torch.ones(rows, dtype=torch.bool, device=device)
        # one piece of memory, which a call fills at once; the last is where the lengths end
        self._numbers = torch.ones(5, rows, dtype=torch.int32, device=device)
        self.lengths, self.prompt_lengths, self.limits, self.minimums, self._last_lengths = self._numbers.unbind()
        self._every_position = torch.arange(positions, device=device)

    def begin(self, requests: Sequence[Request]) -> None:
        """Lay out at most `prompts` requests; rows beyond them are finished from the start."""
        # laid out on the host and copied once, as far as the requests reach; rows without one need two positions
        width = max(2, *(len(request.prompt) + request.limit for request in requests))
        count, positions = len(requests), torch.arange(width)
        numbers = torch.tensor([_numbers(request) for request in requests] + [[1] * 5] * (self.prompts - count))
        ids = torch.zeros(self.prompts, width, dtype=torch.int64)
        # an array becomes a tensor several times as fast as a list
        tokens = array("q", chain.from_iterable(request.prompt for request in requests))
        ids[:count][positions < numbers[:count, :1]] = torch.frombuffer(tokens, dtype=torch.int64)
        slot_table = torch.full((self.prompts, self.group, width), SCRATCH_SLOT, dtype=torch.int32)
        slot_table[:count] = self._slots(requests, positions)
        self.ids[:, :width].copy_(ids.repeat_interleave(self.group, 0))
        self.slot_table[:, :width].copy_(slot_table.flatten(0, 1))
        self._numbers.copy_(numbers.int().repeat_interleave(self.group, 0).t().contiguous())
        self.finished.copy_(torch.arange(self.prompts * self.group) >= count * self.group)

    def _slots(self, requests: Sequence[Request], positions: Tensor) -> Tensor:
        # positions: [width] -> [requests, group, width]: the prompt's slots, then those of each row's own answer
        lengths, limits, sizes = (
            torch.tensor(column)[:, None, None]
            for column in zip(*((len(r.prompt), r.limit, r.slots(self.group)) for r in requests), strict=True)
        )
        first = SCRATCH_SLOT + 1 + sizes.cumsum(0) - sizes
        own = torch.arange(self.group)[:, None] * limits
        slots = first + positions + torch.where(positions < lengths, 0, own)
        return torch.where(positions < lengths + limits, slots, SCRATCH_SLOT).int()

    def generated(self) -> Tensor:
        """[rows] int32, how many tokens each row has added before the one that is chosen now."""
        return self.lengths - self.prompt_lengths

    def append(self, tokens: Tensor, logprobs: Tensor | None = None) -> None:
        """Make `tokens` [rows] int64 the current ones; the model gave them `logprobs` [rows] fp32, kept if given."""
        positions = self.lengths.long()[:, None]
        self.tokens.copy_(tokens)
        self.ids.scatter_(1, positions, tokens[:, None])
        if logprobs is not None:
            self.logprobs.scatter_(1, positions, logprobs[:, None])

    def advance(self) -> None:
        """Count the current tokens as cached; a row at its limit stays there, so that it never leaves its slots."""
        self.lengths.add_(1).clamp_(max=self._last_lengths)

    def reorder(self, parents: Tensor, with_ids: bool) -> None:
        """Let row i continue row parents[i] ([rows] int64); the answer slots still to be written stay the row's own.

        `with_ids` says whether anything reads `ids`, which otherwise stay where they are.
        """
        # [rows, positions]: what is cached comes from the parent, what is not is kept
        cached = self._every_position < self.lengths[:, None]
        self.slot_table.copy_(torch.where(cached, self.slot_table[parents], self.slot_table))
        if with_ids:
            self.ids.copy_(self.ids[parents])


def _numbers(request: Request) -> list[int]:
    # length, prompt's length, limit, minimum, last length
    length = len(request.prompt)
    return [length, length, request.limit, request.minimum, length + request.limit - 1]
