"""Tensors arrive whole on a device whose streams run late, and on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelscope_polylm.network import loader
from modelscope_polylm.network.loader import TensorSource
from modelscope_polylm.network.weights import WeightFiles
from tests.network.late_device import LateTorch, Stream
from tests.snapshots import LAYOUTS, build_snapshot, read_config

SIZES = [(3,), (1, 1), (0,), (7, 100), (50, 37), (1000,), (64, 64)]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def tensors(count: int, scale: int = 1) -> list[torch.Tensor]:
    shapes = [SIZES[index % len(SIZES)] for index in range(count)]
    drawn = [torch.randn(shape[0] * scale, *shape[1:]) for shape in shapes]
    return [tensor.bfloat16() if index % 2 else tensor for index, tensor in enumerate(drawn)]


def in_memory(given: list[torch.Tensor], folder: Path) -> list[TensorSource]:
    return [TensorSource(tensor) for tensor in given]


def in_files(given: list[torch.Tensor], folder: Path) -> list[TensorSource]:
    """Every tensor in one of two files, which alone hold its bytes."""
    sources, contents = [], {folder / "a": b"head", folder / "b": b""}
    for index, tensor in enumerate(given):
        path = folder / "ab"[index // 5 % 2]
        sources.append(TensorSource(torch.empty_like(tensor), path, len(contents[path])))
        contents[path] += tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    for path, content in contents.items():
        path.write_bytes(content)
    return sources


@pytest.fixture(params=[in_memory, in_files], ids=["memory", "files"])
def stored(request: pytest.FixtureRequest):
    """Makes sources of tensors."""
    return request.param


def test_nothing_is_copied_for_a_cpu(tmp_path):
    given = tensors(3)
    moved = loader.transfer(enumerate(in_memory(given, tmp_path)), CPU)
    assert all(there is tensor is given[index] for index, tensor, there in moved)


@pytest.mark.parametrize("ahead", [0, 2000, 1 << 30])
def test_every_byte_arrives_however_late_the_streams_are(monkeypatch, tmp_path, stored, ahead):
    device = LateTorch()
    device.main = Stream(latest=0)  # it is never late enough to be right by chance
    monkeypatch.setattr(loader, "torch", device)
    for name, value in (("CHUNK_BYTES", 256), ("READERS", 3), ("AHEAD_BYTES", ahead)):
        monkeypatch.setattr(loader, name, value)
    given = tensors(24)
    for index, tensor, moved in loader.transfer(enumerate(stored(given, tmp_path)), CUDA):
        assert moved.dtype == tensor.dtype
        assert torch.equal(device.read(moved), given[index])


def test_memory_is_not_written_before_the_present_stream_is_done_with_it(monkeypatch):
    device = LateTorch()
    memory, before = torch.zeros(40), []
    device.memory = memory
    monkeypatch.setattr(loader, "torch", device)
    # buffers that are there at once, before the work below is done
    monkeypatch.setattr(loader, "CHUNK_BYTES", 256)
    for _ in range(20):
        device.main.add(lambda: before.append(memory.clone()))
    ((_, tensor, moved),) = loader.transfer([(0, TensorSource(torch.ones(40)))], CUDA)
    assert torch.equal(device.read(moved), tensor)
    assert len(before) == 20 and not any(seen.any() for seen in before)


def test_a_file_that_became_shorter_is_not_read_as_zeros(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "torch", LateTorch())
    (source,) = in_files([torch.ones(100)], tmp_path)
    source.path.write_bytes(source.path.read_bytes()[:-1])
    with pytest.raises(OSError, match="became shorter"):
        list(loader.transfer([(0, source)], CUDA))


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_pieces_of_a_source_stand_where_their_rows_do(tmp_path, rows):
    given = torch.randn(7, 6)
    (source,) = in_files([given], tmp_path)
    content = source.path.read_bytes()
    pieces = list(source.split(rows))
    found = [content[piece.start : piece.start + piece.tensor.nbytes] for piece in pieces]
    assert b"".join(found) == given.view(torch.uint8).numpy().tobytes()
    assert [len(piece.tensor) for piece in pieces] == [len(piece) for piece in given.split(rows)]


@pytest.mark.gpu
def test_every_byte_arrives_on_a_gpu(tmp_path, stored):
    given = tensors(60, scale=5000)
    moved = loader.transfer(enumerate(stored(given, tmp_path)), CUDA)
    assert all(torch.equal(there.cpu(), given[index]) for index, _, there in moved)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_on_a_gpu_are_those_on_the_cpu(tmp_path: Path, layout: str):
    folder = build_snapshot(tmp_path, layout)
    files, config = WeightFiles(folder), read_config(folder)
    expected = files.load(config, CPU, torch.bfloat16)
    loaded = files.load(config, CUDA, torch.bfloat16)
    assert all(torch.equal(loaded[name].cpu(), tensor) for name, tensor in expected.items())
