"""Tensors arrive whole on a device whose streams run late, and on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelscope_polylm.network import upload
from modelscope_polylm.network.weights import WeightFiles
from tests.network.late_device import LateTorch, Stream
from tests.snapshots import LAYOUTS, build_snapshot, read_config

SIZES = [(3,), (1, 1), (0,), (7, 100), (50, 37), (1000,), (64, 64)]


def tensors(count: int, scale: int = 1) -> list[torch.Tensor]:
    shapes = [SIZES[index % len(SIZES)] for index in range(count)]
    drawn = [torch.randn(shape[0] * scale, *shape[1:]) for shape in shapes]
    return [tensor.bfloat16() if index % 2 else tensor for index, tensor in enumerate(drawn)]


def test_a_cpu_needs_no_upload():
    given = tensors(3)
    moved = upload.upload(enumerate(given), torch.device("cpu"))
    assert all(there is tensor is given[index] for index, tensor, there in moved)


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_every_byte_arrives_however_late_the_streams_are(monkeypatch, buffers):
    device = LateTorch()
    device.main = Stream(latest=0)  # it is never late enough to be right by chance
    monkeypatch.setattr(upload, "torch", device)
    monkeypatch.setattr(upload, "CHUNK_BYTES", 256)
    monkeypatch.setattr(upload, "BUFFERS", buffers)
    given = tensors(24)
    for index, tensor, moved in upload.upload(enumerate(given), torch.device("cuda")):
        assert moved.dtype == tensor.dtype
        assert torch.equal(device.read(moved), given[index])


def test_memory_is_not_written_before_the_present_stream_is_done_with_it(monkeypatch):
    device = LateTorch()
    memory, before = torch.zeros(40), []
    device.memory = memory
    monkeypatch.setattr(upload, "torch", device)
    # buffers that are there at once, before the work below is done
    monkeypatch.setattr(upload, "CHUNK_BYTES", 256)
    for _ in range(20):
        device.main.add(lambda: before.append(memory.clone()))
    ((_, tensor, moved),) = upload.upload([(0, torch.ones(40))], torch.device("cuda"))
    assert torch.equal(device.read(moved), tensor)
    assert len(before) == 20 and not any(seen.any() for seen in before)


@pytest.mark.gpu
def test_every_byte_arrives_on_a_gpu():
    given = tensors(60, scale=5000)
    moved = upload.upload(enumerate(given), torch.device("cuda"))
    assert all(torch.equal(there.cpu(), tensor) for _, tensor, there in moved)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_on_a_gpu_are_those_on_the_cpu(tmp_path: Path, layout: str):
    folder = build_snapshot(tmp_path, layout)
    files, config = WeightFiles(folder), read_config(folder)
    expected = files.load(config, torch.device("cpu"), torch.bfloat16)
    loaded = files.load(config, torch.device("cuda"), torch.bfloat16)
    assert all(torch.equal(loaded[name].cpu(), tensor) for name, tensor in expected.items())
