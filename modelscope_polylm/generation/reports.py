"""Brings what each step reports to the host without making the device wait."""

from __future__ import annotations

import collections

import torch
from torch import Tensor

STEPS_AHEAD = 4
"""How many steps a GPU may run ahead of the host's reading; so many steps can be wasted when a batch ends early."""


class Reports:
    """A queue of copies of `source`, one for each recorded step.

    Args:
        source: a device tensor that every step overwrites.
    """

    def __init__(self, source: Tensor):
        self._source = source
        self._pending: collections.deque[tuple[Tensor, torch.cuda.Event | None]] = collections.deque()

    def may_record(self) -> bool:
        """Whether another step may be started before the next `read`."""
        return len(self._pending) < (STEPS_AHEAD if self._source.is_cuda else 1)

    def record(self) -> None:
        """Take a copy behind the work that is queued on the device."""
        if not self._source.is_cuda:
            self._pending.append((self._source.clone(), None))
            return
        copy = torch.empty(self._source.shape, dtype=self._source.dtype, pin_memory=True)
        copy.copy_(self._source, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((copy, event))

    def read(self) -> Tensor:
        """The oldest copy, on the host; waits until its step is done."""
        copy, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        return copy
