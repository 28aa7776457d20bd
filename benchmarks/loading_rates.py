"""What loading is compared with: how fast this machine reads the same files, and how fast it copies to the device."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from modelscope_polylm.network.checkpoint import CheckpointFile

CHUNK_BYTES = 8 << 20
COPIED_BYTES = 3_000_000_000
Chunk = Callable[[numpy.ndarray[Any, Any]], None]
"""Reads its bytes of a file into the beginning of a buffer."""


def read_rates(files: Sequence[Path], threads: Sequence[int], page_locked: bool) -> dict[str, float]:
    """Bytes per second that threads read into buffers of the host, through maps of the files and by system calls."""
    rates = {}
    for count in threads:
        for name, chunks in (("mapped", _mapped_chunks), ("preadv", _called_chunks)):
            rates[f"{name}, {count} threads"] = _read_rate(list(chunks(files)), count, page_locked, _size(files))
    return rates


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _read_rate(chunks: list[Chunk], threads: int, page_locked: bool, size: int) -> float:
    # zeros, so that every page is there before the clock starts
    buffers = [torch.zeros(CHUNK_BYTES, dtype=torch.uint8, pin_memory=page_locked).numpy() for _ in range(threads)]
    waiting = iter(chunks)

    def read(buffer: numpy.ndarray[Any, Any]) -> None:
        for chunk in waiting:  # shared: each thread takes the next one
            chunk(buffer)

    with concurrent.futures.ThreadPoolExecutor(threads) as readers:
        start = time.perf_counter()
        list(readers.map(read, buffers))
        return size / (time.perf_counter() - start)


def _mapped_chunks(files: Sequence[Path]) -> Iterator[Chunk]:
    for file in files:
        mapped = numpy.memmap(file, mode="r")
        for start in range(0, len(mapped), CHUNK_BYTES):
            part = mapped[start : start + CHUNK_BYTES]
            # numpy copies in the calling thread alone and without the interpreter's lock
            yield lambda buffer, part=part: numpy.copyto(buffer[: len(part)], part)  # type: ignore[misc]


def _called_chunks(files: Sequence[Path]) -> Iterator[Chunk]:
    for file in files:
        opened = file.open("rb", buffering=0)  # open until the last of its chunks is gone
        for start in range(0, file.stat().st_size, CHUNK_BYTES):
            yield lambda buffer, opened=opened, start=start: _read_at(opened.fileno(), start, buffer)  # type: ignore[misc]


def _read_at(descriptor: int, start: int, buffer: numpy.ndarray[Any, Any]) -> None:
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:].data], start + done)):
        done += count


def page_locked_rate(device: torch.device) -> float:
    """Bytes per second of copies from page-locked memory to a GPU."""
    source = torch.ones(1 << 30, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    target.copy_(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(4):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return 4 * source.nbytes / (time.perf_counter() - start)


def plain_rate(files: Sequence[CheckpointFile], device: torch.device) -> float:
    """Bytes per second of `.to(device)` of mapped tensors, the first COPIED_BYTES of them or a little more."""
    tensors = (tensor for file in files for _, tensor in file.tensors(file.headers))
    copied, start = 0, time.perf_counter()
    while copied < COPIED_BYTES and (tensor := next(tensors, None)) is not None:
        tensor.to(device, copy=True)
        copied += tensor.nbytes
    if device.type == "cuda":
        torch.cuda.synchronize()
    return copied / (time.perf_counter() - start)
