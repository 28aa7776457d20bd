"""The weight files of a snapshot: find them, read their headers, compare those with the declared tensors."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from modelscope_polylm.errors import SnapshotError

ZIP_START = b"PK\x03\x04"
GIT_LFS_START = b"version https://git-lfs"
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """Shape of a stored tensor and torch's name of its type, such as 'bfloat16'.

    Attributes:
        begin: where its bytes stand in the file, row by row; None if they are in another order, or not known.
    """

    shape: tuple[int, ...]
    dtype: str
    begin: int | None = None


class CheckpointFile:
    """A `.bin` or `.safetensors` file. Pickles are read with `weights_only`, so they cannot run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def headers(self) -> dict[str, TensorHeader]:
        """Name to header of every tensor, in the order of the file.

        Raises:
            SnapshotError: one line that says why the file cannot be read.
        """
        self._check_start()
        try:
            return self._safetensors_headers() if self.path.suffix == ".safetensors" else self._pickle_headers()
        except SnapshotError:
            raise
        except Exception as error:  # the parsers answer damaged bytes with any exception, KeyError included
            raise SnapshotError(f"{self.path.name} {_reason(error)}") from error

    def tensors(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor on the CPU, mapped from the file where its format allows that."""
        if self.path.suffix == ".safetensors":
            with safetensors.safe_open(self.path, framework="pt", device="cpu") as file:
                for name in (name for name in self.headers if name in wanted):
                    yield name, file.get_tensor(name)
            return
        stored = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._is_zip())
        for name in list(stored):
            tensor = stored.pop(name)
            if name in wanted:
                # some files hold parameters, which would record what is done with them
                yield name, tensor.detach()

    def _check_start(self) -> None:
        if not self.path.is_file():
            raise SnapshotError(f"{self.path.name} is missing: download the snapshot again")
        start = self._start(len(GIT_LFS_START))
        if not start:
            raise SnapshotError(f"{self.path.name} is empty: download the snapshot again")
        if start == GIT_LFS_START:
            raise SnapshotError(f"{self.path.name} is a Git LFS pointer, not the weights: run `git lfs pull` there")

    def _start(self, length: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.read(length)
        except OSError as error:
            raise SnapshotError(f"{self.path.name} cannot be read: {error}") from error

    def _is_zip(self) -> bool:
        return self._start(len(ZIP_START)) == ZIP_START

    def _safetensors_headers(self) -> dict[str, TensorHeader]:
        headers = {}
        with safetensors.safe_open(self.path, framework="pt", device="cpu") as file:
            begins = self._safetensors_begins()
            for name in file.keys():  # noqa: SIM118  (a safetensors file is not a mapping)
                part = file.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype().lower())
                headers[name] = TensorHeader(tuple(part.get_shape()), dtype, begins[name])
        return headers

    def _safetensors_begins(self) -> dict[str, int]:
        # the library, which has checked the file, gives no positions: https://huggingface.co/docs/safetensors, "Format"
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}

    def _pickle_headers(self) -> dict[str, TensorHeader]:
        # no numbers are read from a zip; an older pickle is read through without being kept
        stored = torch.load(self.path, map_location="meta", weights_only=True)
        if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
            raise SnapshotError(f"{self.path.name} holds something other than a flat dictionary of tensors")
        return {
            name: TensorHeader(tuple(value.shape), str(value.dtype)[6:], _begin(value))
            for name, value in stored.items()
        }


def _begin(tensor: Tensor) -> int | None:
    # tensor: on the meta device, where torch.load notes the places of a zip's storages
    storage = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    return storage + tensor.storage_offset() * tensor.element_size() if storage and tensor.is_contiguous() else None


def _reason(error: Exception) -> str:
    """What a person can do about an error of torch.load or safe_open."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "global" in text.lower():
        return "holds objects other than tensors, which are not loaded because they could run code"
    return f"is damaged or incomplete, download it again ({text.splitlines()[0] if text else type(error).__name__})"


# In the order in which transformers looks for them.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


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
    name = next((name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if name is None:
        return WeightIndex([], {}, [_no_weights(folder)])
    if not name.endswith(".index.json"):
        return WeightIndex([CheckpointFile(folder / name)], {}, [])
    try:
        assigned = _assigned(json.loads((folder / name).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return WeightIndex([], {}, [f"{name} cannot be read ({error}): download the snapshot again"])
    return WeightIndex([CheckpointFile(folder / file) for file in assigned], assigned, [])


def _assigned(index: Any) -> dict[str, list[str]]:
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("it has no weight_map")
    assigned: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"weight_map sends {tensor} to {file!r}, which is not a file name")
        assigned.setdefault(file, []).append(tensor)
    return assigned


def _no_weights(folder: Path) -> str:
    shards = sorted(path.name for suffix in ("bin", "safetensors") for path in folder.glob(f"*-of-*.{suffix}"))
    if shards:
        return f"the index of the shards {', '.join(shards[:4])} is missing: download the snapshot again"
    return f"no weights: {', '.join(WEIGHT_NAMES)} are all missing: download the snapshot again"


FLOATING = ("float32", "bfloat16", "float16", "float64")
MOST_LINES = 20


def tensor_problems(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorHeader]) -> list[str]:
    """A line for each tensor that is missing, unexpected, misshapen or not floating; at most 20 of each kind."""
    missing = [f"tensor {name} {_sizes(shape)} is missing" for name, shape in expected.items() if name not in found]
    unexpected = [
        f"tensor {name} {_sizes(header.shape)} is unexpected: GPT-2 has no place for it"
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
        f"tensor {name} holds {header.dtype}, expected one of {', '.join(FLOATING)}"
        for name, _, header in both
        if header.dtype not in FLOATING
    ]
    return [line for lines in (missing, unexpected, misshapen, types) for line in _shortened(lines)]


def _sizes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more tensors of which the same is true"]
