"""Moves tensors that are mapped from files to a device; to a GPU by several readers, through page-locked buffers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import numpy
import torch
from torch import Tensor

CHUNK_BYTES = 8 << 20
READERS = 16
BUFFERS = 2
"""Of each reader: one is filled while the GPU takes the other."""
AHEAD_BYTES = 1 << 30
"""Bytes of tensors that may be on their way to a GPU while an earlier one is waited for."""

Label = TypeVar("Label")


class Upload(Protocol):
    """Takes labelled contiguous CPU tensors; gives each label, the tensor, and the tensor on the device, in order.

    What it gives is ready for work on the current stream.
    """

    def __call__(self, labelled: Iterable[tuple[Label, Tensor]]) -> Iterator[tuple[Label, Tensor, Tensor]]: ...


@contextlib.contextmanager
def uploading(device: torch.device) -> Iterator[Upload]:
    """How tensors get to a device for the time of the block: through a `PinnedUpload` to CUDA, plainly elsewhere."""

    def plainly(labelled: Iterable[tuple[Label, Tensor]]) -> Iterator[tuple[Label, Tensor, Tensor]]:
        for label, tensor in labelled:
            yield label, tensor, tensor.to(device)

    if device.type != "cuda":
        yield plainly
        return
    upload = PinnedUpload(device)
    try:
        yield upload
    finally:
        upload.close()


class PinnedUpload:
    """Reads tensors chunk by chunk; the host holds READERS * BUFFERS * CHUNK_BYTES beside the mapped files.

    A plain copy from mapped memory is read by one thread and staged by the driver, at a fraction of the bus's speed.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._readers = concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="polylm-upload")
        self._own = threading.local()

    def __call__(self, labelled: Iterable[tuple[Label, Tensor]]) -> Iterator[tuple[Label, Tensor, Tensor]]:
        """See `Upload`; the tensors that follow are on their way before one is waited for."""
        begun: deque[tuple[Label, Tensor, Callable[[], Tensor]]] = deque()
        ahead = 0
        for label, tensor in labelled:
            begun.append((label, tensor, self._begin(tensor)))
            ahead += tensor.nbytes
            while len(begun) > 1 and ahead > AHEAD_BYTES:
                first, source, moved = begun.popleft()
                ahead -= source.nbytes
                yield first, source, moved()
        yield from ((label, tensor, moved()) for label, tensor, moved in begun)

    def _begin(self, tensor: Tensor) -> Callable[[], Tensor]:
        # tensor: any shape -> the same shape, when it is asked for
        result = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        # the memory may still be in use by work that is queued on the current stream
        ready = torch.cuda.current_stream(self._device).record_event()
        source, target = (each.reshape(-1).view(torch.uint8) for each in (tensor, result))
        chunks = zip(source.split(CHUNK_BYTES), target.split(CHUNK_BYTES), strict=True)
        copies = [self._readers.submit(self._copy, *chunk, ready) for chunk in chunks]

        def moved() -> Tensor:
            for copy in copies:
                torch.cuda.current_stream(self._device).wait_event(copy.result())
            return result

        return moved

    def close(self) -> None:
        """Stop the readers and let their buffers go."""
        self._readers.shutdown(cancel_futures=True)
        torch.cuda.synchronize(self._device)

    def _copy(self, source: Tensor, target: Tensor, ready: torch.cuda.Event) -> torch.cuda.Event:
        # source: [bytes] on the host, target: [bytes] on the device -> when the bytes are there
        if not hasattr(self._own, "way"):
            self._own.way = PinnedWay(self._device)
        copied: torch.cuda.Event = self._own.way.send(source, target, ready)
        return copied


class PinnedWay:
    """One reader's way to the GPU: a stream, and page-locked buffers that take turns."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._buffers = itertools.cycle([_Buffer.new() for _ in range(BUFFERS)])

    def send(self, source: Tensor, target: Tensor, ready: torch.cuda.Event) -> torch.cuda.Event:
        """Copy bytes into a buffer, and have the GPU fetch them once `ready`; gives the event that it has them."""
        # source: [bytes] on the host, target: [bytes] on the device
        buffer = next(self._buffers)
        buffer.fetched.synchronize()
        part = buffer.memory[: len(source)]
        # torch's copy would start a team of threads in every reader
        numpy.copyto(part.numpy(), source.numpy())
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            target.copy_(part, non_blocking=True)
            # a new one each time: the present one may still be waited for elsewhere
            buffer.fetched = torch.cuda.Event()
            buffer.fetched.record(self._stream)
        return buffer.fetched


@dataclasses.dataclass
class _Buffer:
    """Page-locked memory, and the event behind which the GPU no longer reads it."""

    memory: Tensor
    fetched: torch.cuda.Event

    @classmethod
    def new(cls) -> _Buffer:
        """An unused one."""
        return cls(torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())
