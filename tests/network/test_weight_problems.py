"""Damaged and unfit weight files are refused with one line for each thing that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.network.weights import WeightFiles, not_finite
from tests.snapshots import LAYOUTS, build_snapshot, read_config

NOT_FINITE = (float("nan"), float("inf"), -float("inf"))
FORMATS = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}


def problems(folder: Path) -> list[str]:
    return WeightFiles(folder).problems(read_config(folder))


def change_tensors(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite a weight file after `change` worked on its tensors."""
    is_pickle = file.suffix == ".bin"
    tensors: dict[str, Tensor] = torch.load(file, weights_only=True) if is_pickle else load_file(file)
    change(tensors)
    if is_pickle:
        torch.save(tensors, file)
    else:
        save_file(tensors, file)


def test_feed_forward_of_another_width(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path)
    values = {**json.loads((folder / "config.json").read_text()), "n_inner": 512}
    (folder / "config.json").write_text(json.dumps(values))
    found = problems(folder)
    assert "tensor h.0.mlp.c_fc.weight has shape [256, 1024], expected [256, 512]" in found
    assert "tensor h.1.mlp.c_proj.weight has shape [1024, 256], expected [512, 256]" in found


@pytest.mark.parametrize("layout", FORMATS)
def test_wrong_tensors_are_all_named(tmp_path: Path, layout: str) -> None:
    folder = build_snapshot(tmp_path, layout)

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.h.0.attn.rotary_emb.inv_freq"] = torch.zeros(64)
        tensors["transformer.wpe.weight"] = torch.zeros(128, 256)
        tensors["transformer.h.1.mlp.c_fc.bias"] = torch.zeros(1024, dtype=torch.int8)
        tensors["transformer.h.2.ln_1.weight"] = torch.zeros(256)

    change_tensors(folder / FORMATS[layout], change)
    assert problems(folder) == [
        "tensor ln_f.bias [256] is missing",
        "tensor h.0.attn.rotary_emb.inv_freq [64] is unexpected: GPT-2 has no such tensor",
        "tensor h.2.ln_1.weight [256] is unexpected: GPT-2 has no such tensor",
        "tensor wpe.weight has shape [128, 256], expected [256, 256]",
        "tensor h.1.mlp.c_fc.bias holds int8, expected one of float32, bfloat16, float16, float64",
    ]
    with pytest.raises(SnapshotError, match=r"(?s)cannot be used:.*ln_f\.bias .*rotary_emb.*wpe\.weight.*holds int8"):
        WeightFiles(folder).load(read_config(folder), torch.device("cpu"), torch.float32)


def test_long_lists_are_shortened(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, layers=4)
    values = {**json.loads((folder / "config.json").read_text()), "n_layer": 2}
    (folder / "config.json").write_text(json.dumps(values))
    found = problems(folder)
    assert len(found) == 21
    assert found[-1] == "and 4 more like these"


def test_tensor_stored_twice(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path)
    change_tensors(
        folder / "pytorch_model.bin", lambda tensors: tensors.update({"ln_f.bias": tensors["transformer.ln_f.bias"]})
    )
    assert problems(folder) == ["tensor ln_f.bias is stored twice"]


@pytest.mark.parametrize("layout", ["bin-sharded", "safetensors-sharded"])
def test_missing_shard(tmp_path: Path, layout: str) -> None:
    folder = build_snapshot(tmp_path, layout)
    shard = next(folder.glob("*-00002-of-00003.*"))
    shard.unlink()
    assert problems(folder) == [f"{shard.name} is missing: download the snapshot again"]


def test_missing_shard_does_not_hide_other_problems(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, "safetensors-sharded")
    (folder / "model-00002-of-00003.safetensors").unlink()
    change_tensors(folder / "model-00001-of-00003.safetensors", lambda tensors: tensors.pop("transformer.wpe.weight"))
    assert problems(folder) == [
        "model-00002-of-00003.safetensors is missing: download the snapshot again",
        "tensor wpe.weight [256, 256] is missing",
    ]


@pytest.mark.parametrize("kept", [0, 3, 100, 200_000, -1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_file(tmp_path: Path, layout: str, kept: int) -> None:
    folder = build_snapshot(tmp_path, layout)
    file = next(path for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".safetensors"))
    file.write_bytes(file.read_bytes()[:kept])
    (found,) = problems(folder)
    assert found.startswith(f"{file.name} is ")
    assert "download " in found
    with pytest.raises(SnapshotError, match=file.name):
        WeightFiles(folder).load(read_config(folder), torch.device("cpu"), torch.float32)


def test_truncated_older_pickle(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path)
    file = folder / "pytorch_model.bin"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:-1000])
    (found,) = problems(folder)
    assert found.startswith("pytorch_model.bin is damaged or incomplete")


class RunsCode:
    """Would write a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path)
    torch.save({"wte.weight": RunsCode(tmp_path / "ran")}, folder / "pytorch_model.bin")
    (found,) = problems(folder)
    assert "'__builtin__.getattr', which is no part of a tensor and not loaded because it could run code" in found
    assert "do not trust this file" in found
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"hello, this is no checkpoint at all", "damaged or incomplete"),
        (b"PK\x03\x04 nothing after it", "damaged or incomplete"),
        (b"<html>404</html>", "damaged or incomplete"),
    ],
)
@pytest.mark.parametrize("layout", FORMATS)
def test_file_of_something_else(tmp_path: Path, layout: str, content: bytes, message: str) -> None:
    folder = build_snapshot(tmp_path, layout)
    (folder / FORMATS[layout]).write_bytes(content)
    (found,) = problems(folder)
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize("stored", [[torch.zeros(1)], {"model": {"wte.weight": torch.zeros(1)}}, {"step": 5}])
def test_pickle_of_another_shape(tmp_path: Path, stored: object) -> None:
    folder = build_snapshot(tmp_path)
    torch.save(stored, folder / "pytorch_model.bin")
    assert problems(folder) == ["pytorch_model.bin holds something other than a flat dictionary of tensors"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "it has no weight_map"),
        ('{"weight_map": {}}', "it has no weight_map"),
        ('{"weight_map": {"wte.weight": "../../elsewhere.bin"}}', "'../../elsewhere.bin' is not the name of a file"),
        ('{"weight_map": {"wte.weight": 5}}', "which is no file"),
        ('{"weight_map": {"wte.weight": ""}}', "'' is not the name of a file"),
        ('{"weight_map": {"wte.weight": ".."}}', "'..' is not the name of a file"),
        ('{"weight_map": {"wte.weight": "/etc/passwd"}}', "'/etc/passwd' is not the name of a file"),
        (r'{"weight_map": {"wte.weight": "a\\b.bin"}}', "is not the name of a file"),
        ('{"weight_map": {"wte.weight": "a\\u0000b.bin"}}', "is not the name of a file"),
        (json.dumps({"weight_map": {"wte.weight": "x" * 5000}}), "xxx is not the name of a file"),
        (json.dumps({"weight_map": {"wte.weight": {"x" * 5000: 1}}}), "which is no file"),
        (json.dumps({"weight_map": {"wte.weight": "\ud800.bin"}}), "is not the name of a file"),
        ("[" * 100_000, "cannot be read"),
        ('{"weight_map": ' * 5000, "cannot be read"),
        (" " * (5 << 20), "has more than 4,194,304 bytes"),
    ],
)
def test_bad_index(tmp_path: Path, index: str, message: str) -> None:
    folder = build_snapshot(tmp_path, "bin-sharded")
    (folder / "pytorch_model.bin.index.json").write_text(index)
    (found,) = problems(folder)
    assert message in found and len(found) < 300


def test_index_with_many_files(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, "bin-sharded")
    weight_map = {f"h.{number}.unknown": f"{number}.bin" for number in range(10_000)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = problems(folder)
    assert found[0] == "0.bin is missing: download the snapshot again"
    assert "and 9980 more like these" in found and len(found) < 60


def test_no_weights(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path)
    (folder / "pytorch_model.bin").unlink()
    (found,) = problems(folder)
    assert found.startswith("no weights: model.safetensors, ")


def test_shards_without_index(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, "bin-sharded")
    (folder / "pytorch_model.bin.index.json").unlink()
    (found,) = problems(folder)
    assert found.startswith("the index of the shards pytorch_model-00001-of-00003.bin, ")


def spoil(folder: Path, layout: str, name: str, value: float) -> WeightFiles:
    """Write one number into the middle of a tensor."""

    def change(tensors: dict[str, Tensor]) -> None:
        numbers = tensors[f"transformer.{name}"].view(-1)
        numbers[len(numbers) // 2] = value

    change_tensors(folder / FORMATS[layout], change)
    return WeightFiles(folder)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_numbers_that_are_not_finite_are_found_in_every_dtype(value: float, dtype: torch.dtype) -> None:
    tensors = {
        "whole": torch.ones(3, 4, dtype=dtype),
        "empty": torch.ones(0, dtype=dtype),
        "one": torch.ones((), dtype=dtype),
    }
    assert not_finite(tensors) == []
    tensors["one"].fill_(value)
    assert not_finite(tensors) == ["one"]
    tensors["whole"].t()[1, 2] = value
    assert not_finite(tensors) == ["whole", "one"]
    assert not_finite({}) == []


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", ["wte.weight", "h.0.mlp.c_fc.bias", "h.1.attn.c_attn.weight", "ln_f.weight"])
@pytest.mark.parametrize("layout", FORMATS)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, layout: str, name: str, value: float) -> None:
    files = spoil(build_snapshot(tmp_path, layout, torch.bfloat16), layout, name, value)
    message = rf"cannot be used:\ntensor {name} holds NaN or infinity: the file is damaged"
    with pytest.raises(SnapshotError, match=message) as error:
        files.load(read_config(tmp_path), torch.device("cpu"), torch.float32)
    with pytest.raises(SnapshotError, match=message):
        files.check_finite(read_config(tmp_path), torch.bfloat16)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("stored", "dtype", "value"),
    [
        (torch.float32, torch.float16, 70000.0),
        (torch.float64, torch.float32, 1e39),
        (torch.float32, torch.bfloat16, 3.4e38),
    ],
)
def test_numbers_beyond_the_range_of_the_chosen_dtype(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype, value: float
) -> None:
    files = spoil(build_snapshot(tmp_path, dtype=stored), "bin", "h.0.mlp.c_fc.weight", value)
    config, cpu = read_config(tmp_path), torch.device("cpu")
    message = rf"weight, stored as {str(stored)[6:]}, holds numbers beyond the range of {str(dtype)[6:]}"
    with pytest.raises(SnapshotError, match=message):
        files.load(config, cpu, dtype)
    with pytest.raises(SnapshotError, match=message):
        files.check_finite(config, dtype, {"h.0.mlp.c_fc.weight"})
    files.check_finite(config, dtype, {"h.1.mlp.c_fc.weight"})
    assert files.load(config, cpu, stored)["h.0.mlp.c_fc.weight"].max() == torch.tensor(value, dtype=stored)


def test_what_is_not_used_may_hold_anything(tmp_path: Path) -> None:
    files = spoil(build_snapshot(tmp_path), "bin", "h.0.attn.masked_bias", -float("inf"))
    assert files.load(read_config(tmp_path), torch.device("cpu"), torch.float32)
