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
from typing import BinaryIO, TypeVar

import numpy
import torch
from torch import Tensor

from modelscope_polylm.files import open_untrusted

CHUNK_BYTES = 16 << 20
READERS = 12
"""Each has one pinned buffer of CHUNK_BYTES, from which the GPU copies at once.

Pinning a MiB takes 0.6 ms, in which all readers together read 20, and holds up their copies: so the buffers are small.
16 readers on 16 cores were slower than 12 (benchmarks/RESULTS.md, Loading).
"""
AHEAD_BYTES = 4 << 30
"""Bytes of tensors that may be on their way to a GPU while an earlier one is waited for: enough for all readers."""

Fill = Callable[[int, Tensor], None]
"""Puts the bytes of a tensor from a position on into a buffer, [bytes]; several threads may call it at once."""
Label = TypeVar("Label")


def transfer(
    labelled: Iterable[tuple[Label, TensorSource]], device: torch.device, ahead_bytes: int = AHEAD_BYTES
) -> Iterator[tuple[Label, Tensor, Tensor]]:
    """Yield each label, its tensor on the CPU, and its tensor on the device, in order.

    What it yields is ready for work on the current stream. To CUDA the next tensors, up to `ahead_bytes` and at least
    one, are on their way before one is waited for, and the host holds READERS * CHUNK_BYTES besides the mapped files; a
    plain copy from mapped memory is read by one thread and staged by the driver, at a fraction of the bus's speed.

    Raises:
        OSError: a file ends too early.
    """
    if device.type != "cuda":
        for label, source in labelled:
            yield label, source.tensor, source.tensor.to(device)
        return
    started: deque[tuple[Label, Tensor, Callable[[], Tensor]]] = deque()
    ahead = 0
    with contextlib.closing(_Readers(device)) as readers:
        for label, source in labelled:
            started.append((label, source.tensor, readers.start(source)))
            ahead += source.tensor.nbytes
            while len(started) > 1 and ahead > ahead_bytes:
                first, tensor, finish = started.popleft()
                ahead -= tensor.nbytes
                yield first, tensor, finish()
        yield from ((label, tensor, finish()) for label, tensor, finish in started)


class OpenFiles:
    """Files that are read by position, each opened once."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}

    def descriptor(self, path: Path) -> int:
        """The descriptor of the file, which stays open until `close`."""
        if path not in self._files:
            self._files[path] = open_untrusted(path)
        return self._files[path].fileno()

    def close(self) -> None:
        """Close all of them."""
        for file in self._files.values():
            file.close()
        self._files.clear()


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """A tensor of a file.

    Attributes:
        tensor: on the CPU, mapped from the file.
        path, start: the file and the position in it of the tensor's bytes; None where they are not in one piece.
    """

    tensor: Tensor
    path: Path | None = None
    start: int = 0

    def filling(self, files: OpenFiles) -> Fill:
        """How chunks of its bytes get into buffers: from the file, which spares the page faults of a map."""
        if self.path is None or not hasattr(os, "preadv"):
            return functools.partial(_fill_from_memory, self.tensor.reshape(-1).view(torch.uint8))
        return functools.partial(_fill_from_file, files.descriptor(self.path), self.start)

    def split(self, rows: int) -> Iterator[TensorSource]:
        """Pieces of at most this many rows."""
        start = self.start
        for piece in self.tensor.split(rows):
            yield TensorSource(piece, self.path, start)
            start += piece.nbytes


def _fill_from_memory(source: Tensor, start: int, buffer: Tensor) -> None:
    # source, buffer: [bytes]; torch's copy would start a team of threads in every reader
    numpy.copyto(buffer.numpy(), source[start : start + len(buffer)].numpy())


def _fill_from_file(descriptor: int, first: int, start: int, buffer: Tensor) -> None:
    # buffer: [bytes]
    position, room = first + start, buffer.numpy().data
    while room:
        count = os.preadv(descriptor, [room], position)
        if not count:
            raise OSError("A file of weights became shorter while it was read: do not write to a snapshot in use.")
        position, room = position + count, room[count:]


class _Readers:
    """Threads that read chunks of tensors, each through a staging buffer of its own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._own = threading.local()
        self._files = OpenFiles()
        self._threads = concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="polylm-loader")

    def start(self, source: TensorSource) -> Callable[[], Tensor]:
        """Send a tensor; returns what makes the current stream wait for it, and returns it."""
        result = torch.empty(source.tensor.shape, dtype=source.tensor.dtype, device=self._device)
        # the memory may still be in use by work that is queued on the current stream
        ready = torch.cuda.current_stream(self._device).record_event()
        fill = source.filling(self._files)
        chunks = enumerate(result.reshape(-1).view(torch.uint8).split(CHUNK_BYTES))
        copies = [
            self._threads.submit(self._copy, fill, number * CHUNK_BYTES, chunk, ready) for number, chunk in chunks
        ]

        def finish() -> Tensor:
            for copy in copies:
                torch.cuda.current_stream(self._device).wait_event(copy.result())
            return result

        return finish

    def _copy(self, fill: Fill, start: int, target: Tensor, ready: torch.cuda.Event) -> torch.cuda.Event:
        # target: [bytes] on the device -> when the bytes are there
        if not hasattr(self._own, "buffer"):
            self._own.buffer = _StagingBuffer(self._device)
        copied: torch.cuda.Event = self._own.buffer.send(fill, start, target, ready)
        return copied

    def close(self) -> None:
        """Stop the readers, free their buffers and close the files."""
        self._threads.shutdown(cancel_futures=True)
        torch.cuda.synchronize(self._device)
        self._files.close()


class _StagingBuffer:
    """The pinned buffer of one reader, and the stream on which the GPU copies from it, which becomes the thread's."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        torch.cuda.set_stream(self._stream)
        self._memory = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
        self._copied = torch.cuda.Event()

    def send(self, fill: Fill, start: int, target: Tensor, ready: torch.cuda.Event) -> torch.cuda.Event:
        """Fill the buffer, and have the GPU copy it to the target once `ready`.

        Returns the event of the end of the copy. The next call records it anew: who waits for it then waits for that
        copy, too.
        """
        # target: [bytes] on the device
        self._copied.synchronize()
        part = self._memory[: len(target)]
        fill(start, part)
        self._stream.wait_event(ready)
        target.copy_(part, non_blocking=True)
        self._copied.record(self._stream)
        return self._copied
