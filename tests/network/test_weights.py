"""Weights of every published layout load to the same tensors, with no more memory than they need."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelscope_polylm.errors import DeviceError
from modelscope_polylm.network.checkpoint import CheckpointFile
from modelscope_polylm.network.weights import PROJECTION, WeightFiles, declared_shapes
from tests.bounds import limited_memory
from tests.snapshots import LAYOUTS, build_snapshot, checkpoint_tensors, random_model, read_config, write_weights

CPU = torch.device("cpu")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return WeightFiles(folder).load(read_config(folder), CPU, dtype)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """The tensors of `build_snapshot`'s model, projections transposed."""
    state = random_model().transformer.state_dict()
    return {name: tensor.t() if PROJECTION.fullmatch(name) else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, expected: dict[str, Tensor], layout: str, dtype: torch.dtype, prefix: str) -> None:
    folder = build_snapshot(tmp_path, layout, dtype, prefix=prefix)
    loaded = load(folder)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == declared_shapes(read_config(folder))
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected[name].to(dtype).float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_target_dtype(random_snapshot: Path, expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, tensor in load(random_snapshot, dtype).items():
        assert torch.equal(tensor, expected[name].to(dtype)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_stand_where_the_headers_say(tmp_path: Path, layout: str) -> None:
    for file in WeightFiles(build_snapshot(tmp_path, layout, torch.bfloat16)).files:
        content = file.path.read_bytes()
        for name, tensor in file.tensors(file.headers):
            header = file.headers[name]
            assert header.is_contiguous, name
            stored = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert content[header.start : header.start + header.nbytes] == stored, name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_views_of_a_storage_are_read_by_their_strides(tmp_path: Path, zipped: bool) -> None:
    tensor, number = torch.arange(20.0).view(4, 5), torch.tensor(7.0)
    views = {"transposed": tensor.t(), "rows": tensor[1:3], "columns": tensor[:, 1:3], "number": number}
    torch.save(views, tmp_path / "views.bin", _use_new_zipfile_serialization=zipped)
    file = CheckpointFile(tmp_path / "views.bin")
    assert [name for name in views if file.headers[name].is_contiguous] == ["rows", "number"]
    start = file.headers["rows"].start
    assert file.path.read_bytes()[start : start + 40] == tensor[1:3].numpy().tobytes()
    assert all(torch.equal(read, views[name]) for name, read in file.tensors(views))


def test_numbers_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    # the older format does not align what it stores
    tensors = {"byte": torch.ones(3, dtype=torch.int8), "numbers": torch.arange(4.0), "half": torch.ones(3).half()}
    torch.save(tensors, tmp_path / "older.bin", _use_new_zipfile_serialization=False)
    file = CheckpointFile(tmp_path / "older.bin")
    assert {file.headers[name].start % 4 for name in tensors} != {0}
    assert all(torch.equal(read, tensors[name]) for name, read in file.tensors(tensors))


def test_older_pickle(random_snapshot: Path, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    tensors = torch.load(random_snapshot / "pytorch_model.bin", weights_only=True)
    (tmp_path / "config.json").write_text((random_snapshot / "config.json").read_text())
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(tmp_path).items())


def test_parameters_are_taken_as_plain_tensors(
    random_snapshot: Path, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    tensors = torch.load(random_snapshot / "pytorch_model.bin", weights_only=True)
    (tmp_path / "config.json").write_text((random_snapshot / "config.json").read_text())
    parameters = {name: torch.nn.Parameter(tensor, tensor.is_floating_point()) for name, tensor in tensors.items()}
    torch.save(parameters, tmp_path / "pytorch_model.bin")
    for name, tensor in load(tmp_path).items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    "prefix", ["module.", "module.transformer.", "_orig_mod.transformer.", "base_model.model.transformer."]
)
def test_prefixes_of_wrappers_are_stripped(tmp_path: Path, expected: dict[str, Tensor], prefix: str) -> None:
    loaded = load(build_snapshot(tmp_path, "bin-sharded", prefix=prefix))
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("layout", ["bin", "safetensors-sharded"])
def test_linear_layout_is_not_transposed(tmp_path: Path, expected: dict[str, Tensor], layout: str) -> None:
    folder = build_snapshot(tmp_path, layout)
    body = {f"transformer.{name}": tensor.contiguous() for name, tensor in expected.items()}
    write_weights(folder, layout, body)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(folder).items())


def test_safetensors_are_preferred(tmp_path: Path, expected: dict[str, Tensor]) -> None:
    build_snapshot(tmp_path, "bin-sharded", seed=1)
    build_snapshot(tmp_path, "safetensors")
    assert torch.equal(load(tmp_path)["wte.weight"], expected["wte.weight"])


def test_weights_outlive_their_file(tmp_path: Path, expected: dict[str, Tensor]) -> None:
    folder = build_snapshot(tmp_path, "safetensors")
    loaded = load(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("layout", ["bin", "bin-sharded"])
def test_equal_head_is_dropped_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: str) -> None:
    folder = build_snapshot(tmp_path, layout, torch.bfloat16)
    with caplog.at_level(logging.WARNING, "modelscope_polylm"):
        assert "lm_head.weight" not in load(folder)
    assert caplog.records == []


@pytest.mark.parametrize("wrong", ["value", "shape"])
def test_different_head_is_dropped_with_a_warning(
    tmp_path: Path, expected: dict[str, Tensor], caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    folder = build_snapshot(tmp_path, "bin-sharded")
    tensors = checkpoint_tensors(random_model(), torch.float32, head=True)
    tensors["lm_head.weight"][-1, -1] += 1.0
    if wrong == "shape":
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    write_weights(folder, "bin-sharded", tensors)
    assert torch.equal(load(folder)["wte.weight"], expected["wte.weight"])
    assert "lm_head.weight differs from wte.weight" in caplog.text


@pytest.fixture
def large_folder() -> Iterator[Path]:
    """A folder that is deleted at once, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


MEASURE_PEAK = """
import json, sys, torch
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.weights import WeightFiles

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

config = PolyLMConfig.from_dict(json.load(open(sys.argv[1] + "/config.json")))
torch.zeros(1).to(torch.bfloat16)
before = peak()
weights = WeightFiles(sys.argv[1]).load(config, torch.device("cpu"), torch.bfloat16)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("layout", ["bin-sharded", "safetensors-sharded"])
def test_peak_memory_is_the_result_and_one_shard(large_folder: Path, layout: str) -> None:
    folder = build_snapshot(large_folder, layout, vocab_size=4096, width=768, heads=6, layers=6, shards=6)
    files = [path.stat().st_size for path in folder.iterdir() if path.suffix in (".bin", ".safetensors")]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    result = 2 * read_config(folder).parameters
    assert sum(files) > 170e6
    # 15 MB for what the readers themselves need; all shards at once would be over by more than 100 MB.
    assert int(run.stdout) < result + max(files) + 15e6


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(
    ("room", "message"), [(64 << 20, "cannot be mapped into memory"), (256 << 20, "has no room for 0.2 GiB")]
)
def test_memory_that_is_too_small(large_folder: Path, room: int, message: str) -> None:
    files = WeightFiles(build_snapshot(large_folder, vocab_size=50_000, width=1024, heads=8, layers=1))
    with limited_memory(room), pytest.raises(DeviceError, match=message):
        files.load(read_config(large_folder), CPU, torch.float32)
