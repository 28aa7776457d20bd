"""Weight files that are made to run code, to be read wrongly, or to take all time and memory, are refused in bounds."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.network.checkpoint import CheckpointFile
from modelscope_polylm.network.weight_formats import damaged_record
from modelscope_polylm.network.weights import WeightFiles
from tests.bounds import within
from tests.snapshots import build_snapshot, read_config

MANY = 1 << 30


class StorageMark(NamedTuple):
    """Is pickled as a reference to a storage."""

    kind: str
    type: Any
    key: str
    device: str
    count: int


class Rebuilt:
    """Is pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)


def view(count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0") -> Rebuilt:
    """A tensor in a storage of so many fp32 numbers."""
    storage = StorageMark("storage", torch.FloatStorage, key, "cpu", count)
    return Rebuilt(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())


class Crafter(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, StorageMark) else None

    def reducer_override(self, value: Any) -> Any:
        return value.call if isinstance(value, Rebuilt) else NotImplemented


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    Crafter(stream, protocol=2).dump(value)
    return stream.getvalue()


def write_zip(path: Path, content: bytes, storage: bytes = bytes(64), compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", b"3\n")
    return path


def refused(path: Path, seconds: float = 3, megabytes: float = 150) -> str:
    """The one line with which a file is refused, in bounds."""
    with within(seconds, megabytes), pytest.raises(SnapshotError) as error:
        file = CheckpointFile(path)
        dict(file.tensors(file.headers))
    (line,) = str(error.value).splitlines()
    assert line.startswith(path.name) and len(line) < 500
    return line


def test_crafted_file_without_a_fault(tmp_path: Path) -> None:
    tensors = {
        "whole": view(16, 0, (4, 4), (4, 1)),
        "transposed": view(16, 0, (4, 4), (1, 4)),
        "last": view(16, 15, (), ()),
    }
    numbers = torch.arange(16.0)
    file = CheckpointFile(write_zip(tmp_path / "a.bin", pickled(tensors), numbers.numpy().tobytes()))
    read = dict(file.tensors(file.headers))
    assert torch.equal(read["whole"], numbers.view(4, 4)) and torch.equal(read["transposed"], numbers.view(4, 4).t())
    assert read["last"] == 15


@pytest.mark.parametrize(
    "tensor",
    [
        view(17, 0, (17,), (1,)),
        view(16, 0, (17,), (1,)),
        view(16, 1, (16,), (1,)),
        view(16, 2**40, (1,), (1,)),
        view(MANY, 0, (MANY,), (1,)),
        view(16, 0, (MANY, 4), (0, 1)),
        view(16, 0, (10**9,), (0,)),
        view(16, 0, (4, 4), (-4, 1)),
        view(16, 15, (4,), (-1,)),
        view(16, 0, (4, 4), (2, 1)),
        view(16, 0, (4, 4), (4,)),
        view(16, 0, (-4, -4), (4, 1)),
        view(16, 0, (2**62, 2**62), (4, 1)),
        view(16, -1, (4,), (1,)),
        view(16, 0, (1,) * 100, (1,) * 100),
        view(16, 0, (4.0,), (1,)),  # type: ignore[arg-type]
        view(16, 0, (True,), (1,)),
        view(16, 0, (4,), (1,), key="1"),
        view(16, 0, (4,), (1,), key="../../etc/passwd"),
    ],
)
def test_views_beyond_their_storage(tmp_path: Path, tensor: Rebuilt) -> None:
    line = refused(write_zip(tmp_path / "a.bin", pickled({"wte.weight": tensor})))
    assert "is damaged" in line and "download it again" in line


def test_compressed_records(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path / "model")
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as source:
        records = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    # torch reads such a file by itself, but not mapped, and a snapshot's files are mapped
    assert torch.load(path, weights_only=True)["transformer.ln_f.bias"].isfinite().all()
    assert "is compressed, which torch.save never does" in refused(path)
    with pytest.raises(SnapshotError, match="is compressed"):
        WeightFiles(folder).load(read_config(folder), torch.device("cpu"), torch.float32)


def test_records_that_grow_when_they_are_unpacked(tmp_path: Path) -> None:
    numbers = {"wte.weight": view(64 << 20, 0, (64 << 20,), (1,))}
    path = write_zip(tmp_path / "a.bin", pickled(numbers), bytes(256 << 20), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "is compressed" in refused(path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Rebuilt(os.system, "true"), "posix.system"),
        (Rebuilt(eval, "1"), "__builtin__.eval"),
        (Rebuilt(bytearray, 8 * 10**9), "__builtin__.bytearray"),
        (Rebuilt(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, ()), "torch._utils._rebuild_sparse_tensor"),
        (Rebuilt(torch.Tensor, 8 * 10**9), "torch.Tensor"),
    ],
)
def test_foreign_names(tmp_path: Path, value: Rebuilt, name: str) -> None:
    line = refused(write_zip(tmp_path / "a.bin", pickled({"wte.weight": value})))
    assert f"names '{name}', which is no part of a tensor and not loaded because it could run code" in line
    assert "do not trust this file, nor load it elsewhere with weights_only=False" in line


def nested(depth: int) -> bytes:
    """The instructions for a tuple of two that holds itself, doubled at every level: 2 ** depth in all."""
    return b")" + b"".join(b"q\x00h\x00\x86" for _ in range(depth))


@pytest.mark.parametrize(
    "content",
    {
        "8 MB of dictionaries": b"\x80\x02" + b"}" * (8 << 20) + b".",
        "dictionaries": b"\x80\x02" + b"}" * 50_000 + b".",
        "sets": b"\x80\x02" + b"\x8f" * 50_000 + b".",
        "marks": b"\x80\x02" + b"(" * 50_000 + b".",
        "tuples in tuples": b"\x80\x02)" + b"\x85" * 50_000 + b".",
        "tuples as a name": b"\x80\x02}" + nested(60) + b"Ns.",
        "tuples as a shape": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00"
        + nested(60)
        + nested(60)
        + b"\x89}tR.",
        "tuples as a storage": b"\x80\x02" + nested(60) + b"Q.",
        "a memo of 2 ** 31": b"\x80\x02]r\xff\xff\xff\x7f.",
        "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xffa.",
        "an enormous number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        "no end": b"\x80\x02}",
        "nothing": b"",
        "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00aNs\x86b.",
        "a call of a number": b"\x80\x02K\x01)R.",
        "a call of a type": b"\x80\x02ctorch\nFloatStorage\n)R.",
        "a loop": b"\x80\x02]q\x00h\x00a.",
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_pickles_that_ask_for_too_much(tmp_path: Path, content: tuple[str, bytes], zipped: bool) -> None:
    path = tmp_path / "a.bin"
    if zipped:
        write_zip(path, content[1])
    else:
        start = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(start + content[1] + pickle.dumps([], 2))
    refused(path, seconds=10)


def test_older_file_that_names_more_numbers_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"wte.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(struct.pack("<cH", b"M", 1000), struct.pack("<cI", b"J", MANY))
    for changed in (content, content.replace(struct.pack("<q", 1000), struct.pack("<q", MANY))):
        assert struct.pack("<I", MANY) in changed
        path.write_bytes(changed)
        assert "its numbers are not all there" in refused(path)


def test_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(3)}, path)
    content = path.read_bytes()
    assert content.count(b"little") == 1
    path.write_bytes(content.replace(b"little", b"big\0\0\0"))
    assert "of the other byte order" in refused(path)


def test_a_directory_of_a_million_records(tmp_path: Path) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 64, 0)
    (tmp_path / "a.bin").write_bytes(b"PK\x03\x04" + bytes(60) + directory + end)
    assert "its directory would take" in refused(tmp_path / "a.bin")


def test_records_of_one_name_and_records_elsewhere(tmp_path: Path) -> None:
    path, content = tmp_path / "a.bin", pickled({"a": view(16, 0, (16,), (1,))})
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("archive/data.pkl", content)
    assert "records of one name" in refused(path)
    write_zip(path, content)
    position = path.read_bytes().index(b"PK\x01\x02") + 42
    with path.open("r+b") as file:
        file.seek(position)
        file.write(struct.pack("<L", 7))
    assert "a record is not where its directory says" in refused(path)
    write_zip(path, content)
    changed = path.read_bytes().replace(struct.pack("<LL", 64, 64), struct.pack("<LL", 1 << 20, 1 << 20))
    path.write_bytes(changed)
    assert "a record ends after the file" in refused(path)


def test_flipped_bytes_have_another_checksum(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", pickled({"a": view(16, 0, (16,), (1,))}), bytes(range(64)))
    assert damaged_record(path) is None
    path.write_bytes(path.read_bytes().replace(bytes(range(64)), bytes(64)))
    assert damaged_record(path) == "archive/data/0"
    assert CheckpointFile(path).problem is None


def test_tensors_that_share_their_numbers_would_take_the_memory_of_many(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, layers=2)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    config = {**json.loads((folder / "config.json").read_text()), "n_layer": 1000}
    (folder / "config.json").write_text(json.dumps(config))
    for layer in range(1000):
        for name in [name for name in tensors if name.startswith("transformer.h.0.")]:
            tensors[name.replace("h.0.", f"h.{layer}.")] = tensors[name]
    torch.save(tensors, folder / "pytorch_model.bin")
    with within(seconds=10, megabytes=300):
        (line,) = WeightFiles(folder).problems(read_config(folder))
    assert "tensors share their numbers" in line


def safetensors_bytes(header: dict[str, Any] | bytes, length: int | None = None, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


@pytest.mark.parametrize(
    "content",
    {
        "a header beyond the file": safetensors_bytes(b"{}", length=1 << 20),
        "a header of 2 ** 63": safetensors_bytes(b"{}", length=1 << 63),
        "a header of 91 MB": safetensors_bytes(b" " * (91 << 20)),
        "numbers beyond the file": safetensors_bytes({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        "more numbers than bytes": safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [MANY, MANY], "data_offsets": [0, 16]}}, content=bytes(16)
        ),
        "negative sizes": safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, content=bytes(16)
        ),
        "nested": safetensors_bytes(b"[" * 100_000),
        "no dictionary": safetensors_bytes(b"[]"),
        "not UTF-8": safetensors_bytes(b'{"\xff": 1}'),
    }.items(),
    ids=lambda item: item[0],
)
def test_safetensors_headers(tmp_path: Path, content: tuple[str, bytes]) -> None:
    (tmp_path / "a.safetensors").write_bytes(content[1])
    assert "is damaged or incomplete, download it again" in refused(tmp_path / "a.safetensors")


def test_many_names_are_compared_quickly(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, "safetensors")
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    names = [f"{prefix}h.{number}.unknown" for prefix in ("", "module.") for number in range(20_000)]
    (folder / "model.safetensors").write_bytes(safetensors_bytes(dict.fromkeys(names, entry)))
    with within(seconds=5, megabytes=200):
        found = WeightFiles(folder).problems(read_config(folder))
    assert "tensor h.19.unknown is stored twice" in found and "and 19980 more like these" in found


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "sparse"])
def test_what_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    make: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "loop": lambda path: path.symlink_to(path),
        "sparse": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 20 << 30),
    }
    make[kind](tmp_path / name)
    with within(seconds=3, megabytes=100):
        (line,) = WeightFiles(tmp_path).file_problems()
    assert kind == "loop" or line.startswith(name)


def test_names_and_values_are_cut_and_made_printable(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(
        {**tensors, "x" * 100_000: torch.zeros(1), "line\nbreak\x1b[31m": torch.zeros(1)}, folder / "pytorch_model.bin"
    )
    found = WeightFiles(folder).problems(read_config(folder))
    assert len(found) == 2 and all(line.isprintable() and len(line) < 250 for line in found)
