"""Writes one safetensors file from tensors that are never whole in memory, and hashes it on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.hub.shard_plan import Shard
from modelscope_polylm.hub.weight_source import WeightSource, row_chunks

READ_BYTES = 8 << 20


def write_shard(shard: Shard, source: WeightSource, folder: Path, progress: Callable[[int], None]) -> str:
    """Write a file, flush it to the disk and return its sha256.

    Args:
        shard: what the file holds.
        source: where the tensors come from.
        folder: where the file goes.
        progress: called with the number of bytes of each part that was written.

    Raises:
        SnapshotError: a tensor holds numbers that the file's type cannot.
        OSError: the disk is full, or the like.
    """
    digest, hashed = hashlib.sha256(), Future[None]()
    hashed.set_result(None)
    with ThreadPoolExecutor(1) as hasher, (folder / shard.name).open("wb") as file:
        for part in _parts(shard, source):
            hashed.result()
            hashed = hasher.submit(digest.update, part)
            file.write(part)
            progress(len(part))
        hashed.result()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _parts(shard: Shard, source: WeightSource) -> Iterator[Any]:
    yield shard.header
    for name, tensor in source.tensors(shard.shapes):
        for rows in row_chunks(tensor):
            yield _stored(name, rows, shard.dtype)


def _stored(name: str, rows: Any, dtype: str) -> Any:
    """The bytes of a few rows, in the file's type and order."""
    # rows: [some rows, ...] -> [bytes]
    import torch

    stored = rows.to(getattr(torch, dtype)).contiguous()
    if stored.dtype != rows.dtype and not stored.isfinite().all():
        raise SnapshotError(f"Tensor {name} holds numbers that {dtype} cannot hold: package it with another dtype.")
    return memoryview(stored.view(-1).view(torch.uint8).numpy())
