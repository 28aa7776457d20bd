"""The weight files of a snapshot: which there are, their tensors, and how those differ from what a network needs."""

from __future__ import annotations

import dataclasses
import functools
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from modelscope_polylm.errors import DeviceError, SnapshotError, shortened, shown
from modelscope_polylm.files import GIT_LFS_START, library_errors, open_untrusted, path_inside, read_json
from modelscope_polylm.network.weight_formats import TensorHeader, read_headers

# In the order in which transformers looks for them.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FLOATING = ("float32", "bfloat16", "float16", "float64")
FLOATING_NAMES = ", ".join(FLOATING)


class CheckpointFile:
    """A `.bin` or `.safetensors` file. Neither can run code: pickles are read as data."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def headers(self) -> dict[str, TensorHeader]:
        """Name to header of every tensor, in the order of the file.

        Raises:
            SnapshotError: one line that says why the file cannot be read.
        """
        with open_untrusted(self.path) as file:
            start = file.read(len(GIT_LFS_START))
        if not start:
            raise SnapshotError(f"{self.path.name} is empty: download the snapshot again")
        if start == GIT_LFS_START:
            raise SnapshotError(f"{self.path.name} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        return read_headers(self.path)

    @functools.cached_property
    def problem(self) -> str | None:
        """The line that says why the file cannot be read; None if it can."""
        try:
            self.headers  # noqa: B018  (reading them is the check)
        except SnapshotError as error:
            return str(error)
        return None

    def tensors(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor on the CPU, mapped from the file; what is written to a tensor stays in memory.

        Raises:
            SnapshotError: the file has changed since its headers were read.
            DeviceError: the system does not map a file of this size.
        """
        with open_untrusted(self.path) as file:
            mapped = torch.frombuffer(_map(file, self.path.name), dtype=torch.uint8)
        for name in (name for name in self.headers if name in wanted):
            with library_errors(self.path.name):
                tensor = _view(mapped, self.headers[name])
            yield name, tensor


def _map(file: BinaryIO, name: str) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        size = os.fstat(file.fileno()).st_size / 1e9
        raise DeviceError(f"{name}, of {size:.1f} GB, cannot be mapped into memory ({error.strerror}).") from error
    except ValueError as error:
        raise SnapshotError(f"{name} is empty: download the snapshot again") from error


def _view(mapped: Tensor, header: TensorHeader) -> Tensor:
    # mapped: [bytes] of the whole file -> header.shape
    dtype: torch.dtype = getattr(torch, header.dtype)
    shape, strides = header.shape, header.strides
    last = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) if strides else 0
    size = (last + 1) * dtype.itemsize if strides else header.nbytes
    content = mapped[header.start : header.start + size]
    if header.start % dtype.itemsize:
        content = content.clone()  # numbers of a tensor stand at multiples of their size
    values = content.view(dtype)
    return values.as_strided(shape, strides) if strides else values.view(shape)


@dataclasses.dataclass(frozen=True)
class WeightIndex:
    """The files that hold a snapshot's weights.

    Attributes:
        files: each file once, in the order of the index.
        assigned: file name to the names of the tensors that the index expects in it; empty without an index.
        problems: why files could not be found, a line each.
    """

    files: list[CheckpointFile]
    assigned: Mapping[str, list[str]]
    problems: list[str]


def read_weight_index(folder: Path) -> WeightIndex:
    """Look for the weights in a folder. Never raises: what is wrong is in `problems`."""
    name = next((name for name in WEIGHT_NAMES if (folder / name).exists()), None)
    if name is None:
        return WeightIndex([], {}, [_no_weights(folder)])
    if not name.endswith(".index.json"):
        return WeightIndex([CheckpointFile(folder / name)], {}, [])
    try:
        assigned = _assigned(read_json(folder / name), name)
        return WeightIndex([CheckpointFile(path_inside(folder, file)) for file in assigned], assigned, [])
    except SnapshotError as error:
        return WeightIndex([], {}, [str(error)])


def _assigned(index: Any, index_name: str) -> dict[str, list[str]]:
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise SnapshotError(f"{index_name} cannot be used: it has no weight_map. Download the snapshot again.")
    assigned: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise SnapshotError(f"{index_name}: weight_map sends {shown(tensor)} to {file!r:.80}, which is no file.")
        assigned.setdefault(file, []).append(tensor)
    return assigned


def _no_weights(folder: Path) -> str:
    shards = sorted(path.name for suffix in ("bin", "safetensors") for path in folder.glob(f"*-of-*.{suffix}"))
    if shards:
        return f"the index of the shards {', '.join(shards[:4])} is missing: download the snapshot again"
    return f"no weights: {', '.join(WEIGHT_NAMES)} are all missing: download the snapshot again"


def tensor_problems(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorHeader], integers: Collection[str] = ()
) -> list[str]:
    """List the tensors that are missing, unexpected, misshapen or of a wrong type, a line each, at most 20 of a kind.

    Args:
        expected: shapes by name.
        found: headers by name.
        integers: names of the tensors that hold int32; the others hold floating numbers.
    """
    missing = [f"tensor {name} {_sizes(shape)} is missing" for name, shape in expected.items() if name not in found]
    unexpected = [
        f"tensor {shown(name)} {_sizes(header.shape)} is unexpected: GPT-2 has no such tensor"
        for name, header in found.items()
        if name not in expected
    ]
    both = [(name, shape, found[name]) for name, shape in expected.items() if name in found]
    misshapen = [
        f"tensor {name} has shape {_sizes(header.shape)}, expected {_sizes(shape)}"
        for name, shape, header in both
        if header.shape != shape
    ]
    types = [
        f"tensor {name} holds {header.dtype}, expected {'int32' if name in integers else f'one of {FLOATING_NAMES}'}"
        for name, _, header in both
        if (header.dtype != "int32" if name in integers else header.dtype not in FLOATING)
    ]
    return [line for lines in (missing, unexpected, misshapen, types) for line in shortened(lines)]


def _sizes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
