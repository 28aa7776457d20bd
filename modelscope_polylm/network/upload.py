"""Copies tensors that are mapped from files to a GPU: several threads read, through page-locked buffers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 16 << 20
READERS = 8

Upload = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def uploading(device: torch.device) -> Iterator[Upload]:
    """How tensors get to a device for the time of the block: through a `PinnedUpload` to CUDA, plainly elsewhere."""
    if device.type != "cuda":
        yield lambda tensor: tensor.to(device)
        return
    upload = PinnedUpload(device)
    try:
        yield upload
    finally:
        upload.close()


class PinnedUpload:
    """Uploads one tensor at a time; the host holds READERS * CHUNK_BYTES beside the mapped file.

    A plain copy from mapped memory is read by one thread and staged by the driver, at a fraction of the bus's speed.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._readers = concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="polylm-upload")
        self._local = threading.local()

    def __call__(self, tensor: Tensor) -> Tensor:
        """A copy of a contiguous CPU tensor on the GPU, ready for work on the current stream."""
        # tensor: any shape -> the same shape
        source = tensor.reshape(-1).view(torch.uint8)
        result = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        target = result.view(-1).view(torch.uint8)
        ready = torch.cuda.current_stream(self._device).record_event()
        starts = range(0, len(source), CHUNK_BYTES)
        for copied in self._readers.map(lambda start: self._copy(source, target, start, ready), starts):
            torch.cuda.current_stream(self._device).wait_event(copied)
        return result

    def close(self) -> None:
        """Wait for the readers and let their buffers go."""
        self._readers.shutdown()
        torch.cuda.synchronize(self._device)

    def _copy(self, source: Tensor, target: Tensor, start: int, ready: torch.cuda.Event) -> torch.cuda.Event:
        # source: [bytes] on the host, target: [bytes] on the device
        buffer, stream, copied = self._own_buffer()
        part = source[start : start + CHUNK_BYTES]
        copied.synchronize()
        buffer[: len(part)].copy_(part)
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            target[start : start + len(part)].copy_(buffer[: len(part)], non_blocking=True)
            copied.record(stream)
        return copied

    def _own_buffer(self) -> tuple[Tensor, torch.cuda.Stream, torch.cuda.Event]:
        if not hasattr(self._local, "buffer"):
            buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
            self._local.buffer = (buffer, torch.cuda.Stream(self._device), torch.cuda.Event())
        own: tuple[Tensor, torch.cuda.Stream, torch.cuda.Event] = self._local.buffer
        return own
