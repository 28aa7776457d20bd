"""Moves tensors from files to a device; to a GPU by several readers, through pinned buffers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy
import torch
from torch import Tensor

Fill = Callable[[int, Tensor], None]
"""Puts the bytes of a tensor from a position on into a buffer, [bytes]; several threads may call it at once."""


class OpenFiles:
    """Files that are read by position, each opened once."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def descriptor(self, path: Path) -> int:
        """Of the file, which stays open until `close`."""
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]

    def close(self) -> None:
        """Close all of them."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of a file.

    Attributes:
        tensor: on the CPU, mapped from the file where its format allows that.
        path, begin: the file and the position in it of the tensor's bytes; None where they do not stand in one piece.
    """

    tensor: Tensor
    path: Path | None = None
    begin: int = 0

    def filling(self, files: OpenFiles) -> Fill:
        """How chunks of its bytes get into buffers: from the file, which spares the page faults of a map."""
        if self.path is None or not hasattr(os, "preadv"):
            return functools.partial(_fill_from_memory, self.tensor.reshape(-1).view(torch.uint8))
        return functools.partial(_fill_from_file, files.descriptor(self.path), self.begin)

    def split(self, rows: int) -> Iterator[Source]:
        """Pieces of at most so many rows."""
        begin = self.begin
        for piece in self.tensor.split(rows):
            yield Source(piece, self.path, begin)
            begin += piece.nbytes


def _fill_from_memory(source: Tensor, start: int, buffer: Tensor) -> None:
    # source, buffer: [bytes]; torch's copy would start a team of threads in every reader
    numpy.copyto(buffer.numpy(), source[start : start + len(buffer)].numpy())


def _fill_from_file(descriptor: int, begin: int, start: int, buffer: Tensor) -> None:
    # buffer: [bytes]
    position, room = begin + start, buffer.numpy().data
    while room:
        count = os.preadv(descriptor, [room], position)
        if not count:
            raise OSError("A file of weights became shorter while it was read: do not write to a snapshot in use.")
        position, room = position + count, room[count:]


CHUNK_BYTES = 16 << 20
READERS = 12
"""Each has one page-locked buffer of CHUNK_BYTES, which the GPU fetches at once.

Page-locking a MiB takes 0.6 ms, in which all readers together read 20, and holds up their copies: so the buffers are
small. 16 readers on 16 cores were slower than 12 (benchmarks/RESULTS.md, section 6).
"""
AHEAD_BYTES = 4 << 30
"""Bytes of tensors that may be on their way to a GPU while an earlier one is waited for: enough for all readers."""

Label = TypeVar("Label")


def upload(labelled: Iterable[tuple[Label, Source]], device: torch.device) -> Iterator[tuple[Label, Tensor, Tensor]]:
    """Gives each label, the tensor on the CPU, and the tensor on the device, in order.

    What it gives is ready for work on the current stream. To CUDA the tensors that follow are on their way before one
    is waited for, and the host holds READERS * CHUNK_BYTES beside the mapped files; a plain copy from mapped memory is
    read by one thread and staged by the driver, at a fraction of the bus's speed.

    Raises:
        OSError: a file ends too early.
    """
    if device.type != "cuda":
        for label, source in labelled:
            yield label, source.tensor, source.tensor.to(device)
        return
    begun: deque[tuple[Label, Tensor, Callable[[], Tensor]]] = deque()
    ahead = 0
    with contextlib.closing(_Readers(device)) as readers:
        for label, source in labelled:
            begun.append((label, source.tensor, readers.begin(source)))
            ahead += source.tensor.nbytes
            while len(begun) > 1 and ahead > AHEAD_BYTES:
                first, tensor, moved = begun.popleft()
                ahead -= tensor.nbytes
                yield first, tensor, moved()
        yield from ((label, tensor, moved()) for label, tensor, moved in begun)


class _Readers:
    """Threads that read chunks of tensors, each with a way of its own to the GPU."""

    def __init__(self, device: torch.device):
        self._device = device
        self._own = threading.local()
        self._files = OpenFiles()
        self._threads = concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="polylm-upload")

    def begin(self, source: Source) -> Callable[[], Tensor]:
        """Send a tensor; gives what waits for it, for the current stream's sake, and returns it."""
        result = torch.empty(source.tensor.shape, dtype=source.tensor.dtype, device=self._device)
        # the memory may still be in use by work that is queued on the current stream
        ready = torch.cuda.current_stream(self._device).record_event()
        fill = source.filling(self._files)
        chunks = enumerate(result.reshape(-1).view(torch.uint8).split(CHUNK_BYTES))
        copies = [
            self._threads.submit(self._copy, fill, number * CHUNK_BYTES, chunk, ready) for number, chunk in chunks
        ]

        def moved() -> Tensor:
            for copy in copies:
                torch.cuda.current_stream(self._device).wait_event(copy.result())
            return result

        return moved

    def _copy(self, fill: Fill, start: int, target: Tensor, ready: torch.cuda.Event) -> torch.cuda.Event:
        # target: [bytes] on the device -> when the bytes are there
        if not hasattr(self._own, "way"):
            self._own.way = _PinnedWay(self._device)
        copied: torch.cuda.Event = self._own.way.send(fill, start, target, ready)
        return copied

    def close(self) -> None:
        """Stop the readers, let their buffers go and close the files."""
        self._threads.shutdown(cancel_futures=True)
        torch.cuda.synchronize(self._device)
        self._files.close()


class _PinnedWay:
    """One reader's way to the GPU: a stream, which becomes the thread's own, and a page-locked buffer."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        torch.cuda.set_stream(self._stream)
        self._memory = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
        self._fetched = torch.cuda.Event()

    def send(self, fill: Fill, start: int, target: Tensor, ready: torch.cuda.Event) -> torch.cuda.Event:
        """Fill the buffer, and have the GPU fetch it once `ready`.

        Gives the event that it has it. The next call records it anew: who waits for it then waits for that, too.
        """
        # target: [bytes] on the device
        self._fetched.synchronize()
        part = self._memory[: len(target)]
        fill(start, part)
        self._stream.wait_event(ready)
        target.copy_(part, non_blocking=True)
        self._fetched.record(self._stream)
        return self._fetched
