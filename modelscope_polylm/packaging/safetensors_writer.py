"""Weights -> safetensors shards: which tensor goes where, read row by row, written with their hashes."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import OptionError, SnapshotError
from modelscope_polylm.network.config import PolyLMConfig

if TYPE_CHECKING:
    from torch import Tensor

    from modelscope_polylm.network.weights import WeightFiles


PIECE_BYTES = 1 << 20  # a file was copied in pieces of 32 MiB in 6.9 s, in these in 2.8 s (Linux 6.18, ext4)


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
            for start in range(0, len(part), PIECE_BYTES):
                file.write(part[start : start + PIECE_BYTES])
            progress(len(part))
        hashed.result()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def file_sha256(path: Path, from_disk: bool = False) -> str:
    """sha256 of a file's contents; `from_disk`: not of what the system still holds of it in memory."""
    digest, piece = hashlib.sha256(), mmap.mmap(-1, PIECE_BYTES)  # begins at a page, as direct reading wants it
    with open(path, "rb", buffering=0, opener=_open_direct if from_disk else None) as file:
        while True:
            count = file.readinto(piece)
            digest.update(memoryview(piece)[:count])
            if count < PIECE_BYTES:  # a direct read behind the end is an error on some file systems
                return digest.hexdigest()


def _open_direct(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT)
    except (AttributeError, OSError):  # not Linux, or a file system in memory
        return os.open(path, flags)


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


PREFIX = "transformer."
INDEX = "model.safetensors.index.json"
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAFETENSORS_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Shard:
    """One safetensors file.

    Attributes:
        name: file name.
        shapes: tensor names, without the prefix of transformers, to the shapes as the file holds them.
        dtype: torch's name of their type.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    dtype: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        return {name: math.prod(shape) * ITEM_SIZES[self.dtype] for name, shape in self.shapes.items()}

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(self.sizes.values())

    @property
    def header(self) -> bytes:
        """The file's first bytes, up to the first tensor: https://huggingface.co/docs/safetensors#format."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name, size in self.sizes.items():
            offsets = [start, start + size]
            type = SAFETENSORS_TYPES[self.dtype]
            entries[PREFIX + name] = {"dtype": type, "shape": list(self.shapes[name]), "data_offsets": offsets}
            start += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def plan_shards(shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: str, largest: int) -> list[Shard]:
    """Fill one file after the other, each with at most `largest` bytes unless a single tensor is larger."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = largest
    for name, shape in shapes:
        size = math.prod(shape) * ITEM_SIZES[dtype]
        if size > room and groups[-1]:
            groups.append({})
            room = largest
        groups[-1][name] = shape
        room -= size
    return [Shard(_shard_name(number, len(groups)), group, dtype) for number, group in enumerate(groups, 1)]


def index_json(shards: Sequence[Shard]) -> str:
    """The contents of model.safetensors.index.json."""
    weight_map = {PREFIX + name: shard.name for shard in shards for name in shard.shapes}
    index = {
        "metadata": {"total_size": sum(shard.size for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return json.dumps(index, indent=2) + "\n"


def parse_size(text: str | int) -> int:
    """Bytes of a size such as '5GB' or '500MiB'. Raises OptionError for anything else, and for less than 1 MB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match and match[2].upper() in UNITS else 0
    if size < 10**6:
        raise OptionError(f"max_shard_size={text!r} is not a size of at least 1MB: write it as in '5GB' or '500MiB'.")
    return size


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


CHUNK_BYTES = 4 << 20


class WeightSource:
    """Checked weight files, read as GPT-2 checkpoints hold them: projections are Conv1D's [in, out].

    Attributes:
        shapes: tensor names without prefix to shapes, in the order of the files.
        dtypes: torch's names of the types in which tensors are stored.
    """

    def __init__(self, files: WeightFiles, config: PolyLMConfig) -> None:
        """Raises SnapshotError with every problem of the files."""
        from modelscope_polylm.network.weights import PREFIX, PROJECTION, declared_shapes

        if problems := files.problems(config):
            raise SnapshotError("\n".join([f"The weights in {files.folder} cannot be used:", *problems]))
        self._files, self._prefix, declared = files.files, PREFIX, declared_shapes(config)
        headers = {
            name: header
            for file in self._files
            for stored, header in file.headers.items()
            if (name := stored.removeprefix(PREFIX)) in declared
        }
        is_linear = headers["h.0.attn.c_attn.weight"].shape == declared["h.0.attn.c_attn.weight"]
        self._turned = {name for name in headers if is_linear and PROJECTION.fullmatch(name)}
        self.shapes = {
            name: header.shape[::-1] if name in self._turned else header.shape for name, header in headers.items()
        }
        self.dtypes = {header.dtype for header in headers.values()}

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, mapped from the files where possible, in the order of `shapes`."""
        for file in self._files:
            wanted = {stored for stored in file.headers if stored.removeprefix(self._prefix) in names}
            for stored, tensor in file.tensors(wanted) if wanted else ():
                name = stored.removeprefix(self._prefix)
                yield name, tensor.t() if name in self._turned else tensor

    def head_differs(self) -> bool:
        """Whether the files hold an `lm_head.weight` that is not the embedding, which is the output layer."""
        from modelscope_polylm.network.weights import HEAD

        heads = [file for file in self._files if HEAD in file.headers]
        if not heads:
            return False
        (_, head), (_, embedding) = next(heads[0].tensors({HEAD})), next(self.tensors({"wte.weight"}))
        if head.shape != embedding.shape:
            return True
        pairs = zip(row_chunks(head), row_chunks(embedding), strict=True)
        return not all(one.equal(other.to(one.dtype)) for one, other in pairs)


def row_chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Whole rows of a tensor, as many as make about 4 MiB."""
    # tensor: [rows, ...] -> [some rows, ...]
    row = math.prod(tensor.shape[1:]) * tensor.element_size()
    rows = max(1, CHUNK_BYTES // row)
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows]
