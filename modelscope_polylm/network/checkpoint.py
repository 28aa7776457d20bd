"""One file of tensors: a torch pickle or a safetensors file, its headers read without its numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
from collections.abc import Collection, Iterator
from pathlib import Path

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
