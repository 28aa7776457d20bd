"""Weights -> safetensors shards: which tensor goes where, read a few rows at a time, written and hashed in one pass."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from modelscope_polylm.errors import OptionError, SnapshotError
from modelscope_polylm.network.config import PolyLMConfig

if TYPE_CHECKING:
    from torch import Tensor

    from modelscope_polylm.network.adapter import Adapter
    from modelscope_polylm.network.weights import WeightFiles

PREFIX = "transformer."
INDEX = "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16", "float16")
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4}
SAFETENSORS_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
CHUNK_BYTES = 4 << 20
WRITE_BYTES = 1 << 20  # copying a file took 6.9 s in writes of 32 MiB and 2.8 s in these (Linux 6.18, ext4)


@dataclass(frozen=True)
class Shard:
    """One safetensors file.

    Attributes:
        name: file name.
        shapes: tensor names, without the prefix of transformers, to the shapes as the file holds them.
        dtype: torch's name of the type of those that hold no integers.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    dtype: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        return {name: _bytes_of(name, shape, self.dtype) for name, shape in self.shapes.items()}

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
            type = SAFETENSORS_TYPES[stored_type(name, self.dtype)]
            entries[PREFIX + name] = {"dtype": type, "shape": list(self.shapes[name]), "data_offsets": offsets}
            start += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class WeightSource:
    """Checked weight files, read as GPT-2 checkpoints hold them: projections are Conv1D's [in, out].

    Attributes:
        shapes: tensor names, without the prefix of transformers, to shapes, in the order of the files.
        dtypes: torch's names of the types in which tensors are stored.
    """

    def __init__(self, files: WeightFiles, config: PolyLMConfig, adapter: Adapter | None = None) -> None:
        """Read the headers. Raises SnapshotError with every problem of the files.

        Args:
            files: of the snapshot.
            config: sizes of the network.
            adapter: is added to the tensors.
        """
        from modelscope_polylm.network.weights import PROJECTION, declared_shapes

        if problems := files.problems(config):
            raise SnapshotError("\n".join([f"The weights in {files.folder} cannot be used:", *problems]))
        declared = declared_shapes(config)
        headers = {name: header for name, header in files.headers() if name in declared}
        is_conv1d = files.is_conv1d(config)
        self._files, self._adapter, self._checked = files, adapter, set[Path]()
        self._transposed = {name for name in headers if not is_conv1d and PROJECTION.fullmatch(name)}
        self.shapes = {
            name: header.shape[::-1] if name in self._transposed else header.shape for name, header in headers.items()
        }
        self.dtypes = {header.dtype for header in headers.values()}

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, mapped from the files, in the order of `shapes`.

        Raises:
            SnapshotError: a record of a .bin file does not have the checksum that the file notes.
        """
        from modelscope_polylm.network.weights import network_name

        for file in self._files.files:
            wanted = {name for stored in file.headers if (name := network_name(stored)) in names}
            if wanted:
                self._check_records(file.path)
            for name, source in self._files.tensors(wanted):
                tensor = source.tensor.t() if name in self._transposed else source.tensor
                yield name, self._adapter.merged(name, tensor, transposed=True) if self._adapter else tensor

    def head_differs(self) -> bool:
        """Whether the files hold an `lm_head.weight` that is not the embedding, which is the output layer."""
        from modelscope_polylm.network.weights import HEAD

        head = next(iter(self.tensors({HEAD})), None)
        if head is None:
            return False
        (_, head_weight), (_, embedding) = head, next(self.tensors({"wte.weight"}))
        if head_weight.shape != embedding.shape:
            return True
        pairs = zip(row_chunks(head_weight), row_chunks(embedding), strict=True)
        return not all(one.equal(other.to(one.dtype)) for one, other in pairs)

    def _check_records(self, path: Path) -> None:
        """Check a file once, just before it is read, so that memory still holds it then.

        Packaging and `polylm verify` do this. Loading does not: it would read 28 GB a second time to find what the hash
        of a download has already excluded.
        """
        if path not in self._checked and (problem := record_problem(path)):
            raise SnapshotError(f"The weights in {self._files.folder} cannot be used: {problem}.")
        self._checked.add(path)


class TensorSource(Protocol):
    """Tensors as a package holds them, by names without the prefix of transformers."""

    shapes: dict[str, tuple[int, ...]]

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors in the order of `shapes`."""

    def head_differs(self) -> bool:
        """Whether the files hold an `lm_head.weight` that is not the embedding, which is the output layer."""


def stored_type(name: str, dtype: str) -> str:
    """torch's name of a tensor's type in a package whose other numbers are of `dtype`."""
    from modelscope_polylm.network.gptq import is_integer

    return "int32" if is_integer(name) else dtype


def plan_shards(shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: str, max_bytes: int) -> list[Shard]:
    """Fill one file after the other, each with at most `max_bytes` unless a single tensor is larger."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = max_bytes
    for name, shape in shapes:
        size = _bytes_of(name, shape, dtype)
        if size > room and groups[-1]:
            groups.append({})
            room = max_bytes
        groups[-1][name] = shape
        room -= size
    return [Shard(_shard_name(number, len(groups)), group, dtype) for number, group in enumerate(groups, 1)]


def write_shard(shard: Shard, source: TensorSource, folder: Path, progress: Callable[[int], None]) -> str:
    """Write a file, flush it to the disk and return its sha256.

    Args:
        shard: what the file holds.
        source: where the tensors come from.
        folder: where the file goes.
        progress: called with the number of bytes of each part that was written.

    Raises:
        SnapshotError: a tensor holds NaN or infinity, or numbers beyond the range of the file's type.
        OSError: the disk is full, or the like.
    """
    digest, hashed = hashlib.sha256(), Future[None]()
    hashed.set_result(None)
    with ThreadPoolExecutor(1) as hasher, (folder / shard.name).open("wb") as file:
        for part in _parts(shard, source):
            hashed.result()
            hashed = hasher.submit(digest.update, part)
            for start in range(0, len(part), WRITE_BYTES):
                file.write(part[start : start + WRITE_BYTES])
            progress(len(part))
        hashed.result()
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # drop what memory holds of it, so that the check reads the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


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


def record_problem(path: Path) -> str | None:
    """The line that says which record of a weight file has another checksum than the file notes; None if all agree."""
    from modelscope_polylm.network.weight_formats import damaged_record

    record = damaged_record(path)
    return record and f"{path.name} is damaged, download it again: its record {record} has another checksum than noted"


def row_chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Whole rows of a tensor, as many at a time as fit into 4 MiB."""
    # tensor: [rows, ...] -> [some rows, ...]
    row_bytes = math.prod(tensor.shape[1:]) * tensor.element_size()
    yield from tensor.split(max(1, CHUNK_BYTES // row_bytes))


def _parts(shard: Shard, source: TensorSource) -> Iterator[bytes | memoryview]:
    yield shard.header
    for name, tensor in source.tensors(shard.shapes):
        for rows in row_chunks(tensor):
            yield _stored(name, rows, stored_type(name, shard.dtype))


def _bytes_of(name: str, shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * ITEM_SIZES[stored_type(name, dtype)]


def _stored(name: str, rows: Tensor, dtype: str) -> memoryview:
    """The bytes of a few rows, in the file's type and order."""
    # rows: [some rows, ...] -> [bytes]
    import torch

    from modelscope_polylm.network.weights import not_finite

    stored = rows.to(getattr(torch, dtype)).contiguous()
    if not_finite({name: stored}):
        reason = "numbers beyond its range. Package it as bfloat16 or float32."
        if not_finite({name: rows}):
            reason = "NaN or infinity, so the source is damaged or its training diverged."
        raise SnapshotError(f"Tensor {name} cannot be written as {dtype}: it holds {reason}")
    return stored.view(-1).view(torch.uint8).numpy().data


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
