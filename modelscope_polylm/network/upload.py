"""Moves tensors that are mapped from files to a device; to a GPU through page-locked buffers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
BUFFERS = 3
"""Page-locked chunks: one is filled while the GPU fetches those before it."""

Label = TypeVar("Label")


def upload(labelled: Iterable[tuple[Label, Tensor]], device: torch.device) -> Iterator[tuple[Label, Tensor, Tensor]]:
    """Takes labelled contiguous CPU tensors; gives each label, the tensor, and the tensor on the device, in order.

    What it gives is ready for work on the current stream. On its way to CUDA the host holds BUFFERS * CHUNK_BYTES
    beside the tensors, which all of torch's threads read: a plain copy from mapped memory is read by one thread and
    staged by the driver, at a fraction of the bus's speed.
    """
    way = _PinnedWay(device) if device.type == "cuda" else None
    for label, tensor in labelled:
        yield label, tensor, tensor.to(device) if way is None else way.send(tensor)


class _PinnedWay:
    """A stream to a GPU, and page-locked buffers that take turns."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._buffers = itertools.cycle([_Buffer() for _ in range(BUFFERS)])

    def send(self, tensor: Tensor) -> Tensor:
        """The tensor's copy on the GPU, which work on the current stream waits for."""
        # tensor: any shape -> the same shape
        result = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        present = torch.cuda.current_stream(self._device)
        # the memory may still be in use by work that is queued there
        self._stream.wait_stream(present)
        source, target = (each.reshape(-1).view(torch.uint8) for each in (tensor, result))
        for chunk in zip(source.split(CHUNK_BYTES), target.split(CHUNK_BYTES), strict=True):
            next(self._buffers).send(*chunk, self._stream)
        present.wait_stream(self._stream)
        return result


class _Buffer:
    """Page-locked memory, and the event behind which the GPU no longer reads it."""

    def __init__(self) -> None:
        self._memory = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
        self._fetched = torch.cuda.Event()

    def send(self, source: Tensor, target: Tensor, stream: torch.cuda.Stream) -> None:
        # source: [bytes] on the host, target: [bytes] on the device
        self._fetched.synchronize()
        part = self._memory[: len(source)]
        part.copy_(source)
        with torch.cuda.stream(stream):
            target.copy_(part, non_blocking=True)
        self._fetched.record(stream)
