"""The tensor headers of weight files, in the formats of safetensors and `torch.save`.

Files may come from strangers: nothing that they name is run, and nothing of a size that they name is allocated. A
pickle is read as data: a few instructions, and a few names that stand for a tensor and its parts.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.files import library_errors, open_untrusted

HEADER_BYTES = 4 << 20
"""Most bytes of a safetensors header; that of 13B in one file has 70 kB."""
PICKLE_BYTES = 1 << 20
"""Most bytes of a pickle without its numbers, and of a zip's directory; those of 13B in one file have 110 kB."""
ZIP_START = b"PK\x03\x04"
LOCAL_HEADER_BYTES = 30
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LARGEST_COUNT = 1 << 48
MOST_DIMENSIONS = 8

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
STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

# Instructions of pickles: which push their argument, which push a value, and which make or extend a collection of so
# many values, or of all since the last mark.
LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"})
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
COLLECTIONS: dict[str, tuple[str, int | None]] = {
    "TUPLE": ("tuple", None),
    "TUPLE1": ("tuple", 1),
    "TUPLE2": ("tuple", 2),
    "TUPLE3": ("tuple", 3),
    "APPEND": ("list", 1),
    "APPENDS": ("list", None),
    "SETITEM": ("dict", 2),
    "SETITEMS": ("dict", None),
}


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """What a file says of a tensor.

    Attributes:
        shape: sizes of its dimensions.
        dtype: torch's name of its type, such as 'bfloat16'.
        start: position in the file of its first number.
        strides: numbers from one index of a dimension to the next; None: row by row.
    """

    shape: tuple[int, ...]
    dtype: str
    start: int = 0
    strides: tuple[int, ...] | None = None

    @property
    def is_contiguous(self) -> bool:
        """Whether its bytes stand in one piece, row by row."""
        return self.strides is None

    @property
    def nbytes(self) -> int:
        """Bytes of all its numbers."""
        return math.prod(self.shape) * _item_size(self.dtype)


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Map the name of every tensor of a weight file to its header, in the order of the file.

    Raises:
        SnapshotError: one line that says why the file cannot be used.
    """
    with open_untrusted(path) as file, library_errors(path.name):
        if path.suffix == ".safetensors":
            return _safetensors_headers(path, file)
        pickled = _zip_file(file, path.name) if _bytes_at(file, 0, 4) == ZIP_START else _legacy_file(file, path.name)
        if not all(isinstance(value, PickledTensor) for value in pickled.value.values()):
            raise SnapshotError(f"{path.name} holds something other than a flat dictionary of tensors")
        return {name: _header(name, tensor, pickled, path.name) for name, tensor in pickled.value.items()}


def damaged_record(path: Path) -> str | None:
    """Name the first record of a zip of `torch.save` whose bytes do not have the checksum noted with them.

    This reads the whole file, so it is for packaging and verifying, not for every load.
    """
    with open_untrusted(path) as file, library_errors(path.name):
        if path.suffix == ".safetensors" or _bytes_at(file, 0, 4) != ZIP_START:
            return None
        with zipfile.ZipFile(_BoundedReads(file)) as archive:  # type: ignore[call-overload]
            damaged: str | None = archive.testzip()
            return damaged


def _item_size(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize) if hasattr(torch, dtype) else 1


def _bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _file_size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _safetensors_headers(path: Path, file: BinaryIO) -> dict[str, TensorHeader]:
    # https://huggingface.co/docs/safetensors, "Format"; the library checks the file, but tells no positions
    length = int.from_bytes(file.read(8), "little")
    if length > HEADER_BYTES:
        raise ValueError(f"its header would take {length:,} bytes")
    with safetensors.safe_open(path, framework="pt", device="cpu"):
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _safetensors_header(entry, 8 + length) for name, entry in header.items()}


def _safetensors_header(entry: dict[str, Any], first: int) -> TensorHeader:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"].lower())
    return TensorHeader(tuple(entry["shape"]), dtype, first + entry["data_offsets"][0])


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row; several tensors may share them."""

    key: str
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return self.count * _item_size(self.dtype)


@dataclasses.dataclass(frozen=True)
class PickledTensor:
    """A view of a storage: offset, shape and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PickledFile:
    """What a pickle holds, and the position and the bytes of each storage in the file."""

    value: dict[str, Any]
    storages: dict[str, tuple[int, int]]


def _header(name: str, tensor: PickledTensor, pickled: PickledFile, file_name: str) -> TensorHeader:
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    start, size = pickled.storages.get(storage.key, (0, 0))
    last = tensor.offset + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
    repeats = any(count > 1 and stride < 1 for count, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if size != storage.nbytes or (count and (repeats or last >= storage.count or count > last - tensor.offset + 1)):
        raise SnapshotError(
            f"{file_name} is damaged, download it again: tensor {name!r:.80} has the shape {list(shape)} and the "
            f"strides {list(strides)}, which its {size:,} bytes in the file do not hold"
        )
    is_contiguous = all(a == b for a, b, c in zip(strides, _row_by_row(shape), shape, strict=True) if c != 1)
    begin = start + tensor.offset * _item_size(storage.dtype)
    return TensorHeader(shape, storage.dtype, begin, None if is_contiguous else strides)


def _row_by_row(shape: tuple[int, ...]) -> Iterator[int]:
    return (math.prod(shape[dimension + 1 :]) for dimension in range(len(shape)))


class _BoundedReads(io.BufferedIOBase):
    """A file for zipfile, which reads a directory at once, however large the file says that it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > PICKLE_BYTES:
            raise ValueError(f"its directory would take {size:,} bytes")
        return self._file.read(PICKLE_BYTES if size is None or size < 0 else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _zip_file(file: BinaryIO, name: str) -> PickledFile:
    records = dict(_zip_records(file, name))
    order, length = records.get("byteorder", (0, 0))
    if _bytes_at(file, order, min(length, 8)) not in (b"", b"little"):
        raise SnapshotError(f"{name} was written on a machine of the other byte order: save it anew on this one")
    position, size = records["data.pkl"]
    if size > PICKLE_BYTES:
        raise ValueError(f"its pickle would take {size:,} bytes")
    storages = {key.removeprefix("data/"): record for key, record in records.items() if key.startswith("data/")}
    value = _PickleReader(name).read(io.BytesIO(_bytes_at(file, position, size)))
    return PickledFile(_as_dict(value, name), storages)


def _zip_records(file: BinaryIO, name: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, without the folder that all share, and position and bytes of each record."""
    with zipfile.ZipFile(_BoundedReads(file)) as archive:  # type: ignore[call-overload]
        records = archive.infolist()
    if len({record.filename for record in records}) < len(records):
        raise ValueError("it holds records of one name")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise SnapshotError(
                f"{name} is compressed, which torch.save never does: unpack it and zip it again without compression "
                "(`zip -0`), or get the original file"
            )
        local = _bytes_at(file, record.header_offset, LOCAL_HEADER_BYTES)
        if local[:4] != ZIP_START:
            raise ValueError("a record is not where its directory says")
        names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = record.header_offset + LOCAL_HEADER_BYTES + names
        if start + record.file_size > _file_size(file):
            raise ValueError("a record ends after the file")
        yield record.filename.partition("/")[2], (start, record.file_size)


def _legacy_file(file: BinaryIO, name: str) -> PickledFile:
    """The format of torch.save before 1.6: five pickles, then each storage with its count before it."""
    file.seek(0)
    head, reader = io.BytesIO(file.read(PICKLE_BYTES)), _PickleReader(name)
    if reader.read(head) != LEGACY_MAGIC or reader.read(head) != LEGACY_PROTOCOL:
        raise ValueError("it does not begin as a file of torch.save")
    if not reader.read(head)["little_endian"]:
        raise SnapshotError(f"{name} was written on a machine of the other byte order: save it anew on this one")
    value, keys = reader.read(head), reader.read(head)
    storages, position = {}, head.tell()
    for key in map(_key, keys):
        count, size = int.from_bytes(_bytes_at(file, position, 8), "little"), reader.storages[key].nbytes
        position += 8 + size
        if count != reader.storages[key].count or position > _file_size(file):
            raise ValueError("its numbers are not all there")
        storages[key] = (position - size, size)
    return PickledFile(_as_dict(value, name), storages)


def _as_dict(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SnapshotError(f"{name} holds something other than a flat dictionary of tensors")
    return value


class _PickleReader:
    """Reads the pickles of one file as data.

    Attributes:
        storages: what the pickles refer to, by their keys.
    """

    def __init__(self, file_name: str) -> None:
        self.storages: dict[str, Storage] = {}
        self._file_name = file_name
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self, stream: io.BytesIO) -> Any:
        """The value of the next pickle: numbers, texts, tuples, lists, dictionaries, and tensors.

        Raises:
            SnapshotError: the pickle names something other than the parts of a tensor.
            Exception: of any kind, where the bytes are damaged.
        """
        self._stack, self._marked, self._memo = [], [], {}
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name == "STOP":
                (value,) = self._stack
                return value
            self._execute(instruction.name, argument)
        raise ValueError("a pickle does not end")

    def _execute(self, name: str, argument: Any) -> None:
        if name in LITERALS:
            self._stack.append(argument)
        elif name in CONSTANTS:
            self._stack.append(CONSTANTS[name]())
        elif name in COLLECTIONS:
            self._collect(*COLLECTIONS[name])
        elif name == "MARK":
            self._marked.append(self._stack)
            self._stack = []
        else:
            self._refer(name, argument)

    def _collect(self, kind: str, count: int | None) -> None:
        if count is None:
            items, self._stack = self._stack, self._marked.pop()
        else:
            items = self._stack[-count:]
            del self._stack[-count:]
        if kind == "tuple":
            self._stack.append(tuple(items))
        elif kind == "list":
            self._stack[-1].extend(items)
        elif all(isinstance(key, str) for key in items[::2]):  # the hash of a nested tuple may take for ever
            self._stack[-1].update(zip(items[::2], items[1::2], strict=True))
        else:
            raise ValueError("it names tensors by something other than texts")

    def _refer(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(self._meaning(argument))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(function(*arguments))
        elif name == "BINPERSID":
            storage = _storage(*stack.pop())
            stack.append(self.storages.setdefault(storage.key, storage))
        elif name == "BUILD":
            stack.pop()  # attributes of a dictionary, such as `_metadata` of a state_dict
        elif name != "PROTO":
            raise ValueError(f"it holds the pickle instruction {name}")

    def _meaning(self, name: str) -> Any:
        if name not in PICKLED_NAMES:
            raise SnapshotError(
                f"{self._file_name} names {name.replace(' ', '.')!r:.80}, which is no part of a tensor and not loaded "
                "because it could run code: do not trust this file, nor load it elsewhere with weights_only=False"
            )
        return PICKLED_NAMES[name]


def _storage(kind: str, dtype: str, key: str, device: str, count: int, view: None = None) -> Storage:
    if kind != "storage" or view is not None or dtype not in STORAGE_DTYPES.values():
        raise ValueError("a tensor refers to something other than a storage")
    (checked,) = _counts((count,))
    return Storage(_key(key), dtype, checked)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError("a storage is named by something other than a text")
    return key


def _tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> PickledTensor:
    # rest: requires_grad, hooks, and metadata such as "is negative", which would change the numbers
    if not isinstance(storage, Storage) or any(rest[2:]):
        raise ValueError("a tensor is not made of plain numbers")
    (checked,) = _counts((offset,))
    return PickledTensor(storage, checked, _counts(shape), _counts(strides))


def _parameter(tensor: PickledTensor, *rest: Any) -> PickledTensor:
    return tensor


def _dictionary() -> dict[str, Any]:
    return {}


def _counts(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(values) > MOST_DIMENSIONS or not all(type(value) is int and 0 <= value < LARGEST_COUNT for value in values):
        raise ValueError("a tensor has impossible sizes")
    return tuple(values)


PICKLED_NAMES: dict[str, Any] = {
    "collections OrderedDict": _dictionary,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    **{f"torch {name}": dtype for name, dtype in STORAGE_DTYPES.items()},
}
"""What the names in a pickle stand for."""
