"""The rows of one batch on the device: tokens, lengths and cache slots, in buffers whose shapes never change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from modelscope_polylm.network.cache import SCRATCH_SLOT


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
        self.lengths = torch.ones(rows, dtype=torch.int32, device=device)
        self.prompt_lengths = torch.ones(rows, dtype=torch.int32, device=device)
        self.limits = torch.ones(rows, dtype=torch.int32, device=device)
        self.minimums = torch.zeros(rows, dtype=torch.int32, device=device)
        self.finished = torch.ones(rows, dtype=torch.bool, device=device)

    def begin(self, requests: Sequence[Request]) -> None:
        """Lay out at most `prompts` requests; rows beyond them are finished from the start."""
        # filled on the host and copied once, as far as the requests reach; rows without one need two positions
        width = max(2, *(len(request.prompt) + request.limit for request in requests))
        ids = torch.zeros(len(self.ids), width, dtype=self.ids.dtype)
        slot_table = torch.full(ids.shape, SCRATCH_SLOT, dtype=self.slot_table.dtype)
        numbers = torch.tensor([[1, 1, 0, 1]] * self.prompts, dtype=torch.int32)
        next_slot = SCRATCH_SLOT + 1
        for index, request in enumerate(requests):
            length, end = len(request.prompt), len(request.prompt) + request.limit
            numbers[index] = torch.tensor([length, request.limit, request.minimum, 0])
            answers = next_slot + length + torch.arange(self.group * request.limit).view(self.group, -1)
            rows = slice(index * self.group, (index + 1) * self.group)
            ids[rows, :length] = torch.tensor(request.prompt)
            slot_table[rows, :length] = torch.arange(next_slot, next_slot + length)
            slot_table[rows, length:end] = answers
            next_slot += request.slots(self.group)
        self._copy(ids, slot_table, numbers.repeat_interleave(self.group, dim=0))

    def _copy(self, ids: Tensor, slot_table: Tensor, numbers: Tensor) -> None:
        # ids, slot_table: [rows, width]; numbers: [rows, 4]
        numbers = numbers.to(self.ids.device)
        self.ids[:, : ids.shape[1]].copy_(ids)
        self.slot_table[:, : ids.shape[1]].copy_(slot_table)
        self.prompt_lengths.copy_(numbers[:, 0])
        self.lengths.copy_(numbers[:, 0])
        self.limits.copy_(numbers[:, 1])
        self.minimums.copy_(numbers[:, 2])
        self.finished.copy_(numbers[:, 3])

    def generated(self) -> Tensor:
        """[rows] int32, how many tokens each row has added before the one that is chosen now."""
        return self.lengths - self.prompt_lengths

    def append(self, tokens: Tensor, logprobs: Tensor) -> None:
        """Make `tokens` [rows] int64 the current ones; the model gave them `logprobs` [rows] fp32."""
        positions = self.lengths.long()[:, None]
        self.tokens.copy_(tokens)
        self.ids.scatter_(1, positions, tokens[:, None])
        self.logprobs.scatter_(1, positions, logprobs[:, None])

    def advance(self) -> None:
        """Count the current tokens as cached; a row at its limit stays there, so that it never leaves its slots."""
        self.lengths.copy_(torch.minimum(self.lengths + 1, self.prompt_lengths + self.limits - 1))

    def reorder(self, parents: Tensor) -> None:
        """Let row i continue row parents[i] ([rows] int64); the answer slots still to be written stay the row's own."""
        # [rows, positions]: what is cached comes from the parent, what is not is kept
        cached = torch.arange(self.positions, device=parents.device) < self.lengths[:, None]
        self.slot_table.copy_(torch.where(cached, self.slot_table[parents], self.slot_table))
        self.ids.copy_(self.ids[parents])
        self.logprobs.copy_(self.logprobs[parents])
