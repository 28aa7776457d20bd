"""GPTQ's files: the numbers that they mean, folders that another program would write, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelscope_polylm.errors import OptionError, SnapshotError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.network.gptq import from_parts, to_parts
from modelscope_polylm.network.quantization import QuantizedMatrix, dequantize, quantize
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.packaging.quantized_source import Quantization
from modelscope_polylm.snapshot import open_snapshot
from tests.packaged import short_corpus

__all__ = ["short_corpus"]
BITS = {"int4": 4, "int8": 8}


def plain_numbers(parts: dict[str, Tensor], bits: int) -> Tensor:
    """[in, out] fp64 as AutoGPTQ's first format defines it, weight by weight."""
    inputs = torch.arange(len(parts["g_idx"]))
    words = parts["qweight"].long()[inputs * bits // 32] & 0xFFFFFFFF
    integers = words >> (inputs * bits % 32)[:, None] & (2**bits - 1)
    outputs = torch.arange(words.shape[1])
    zeros = parts["qzeros"].long()[:, outputs * bits // 32] & 0xFFFFFFFF
    zeros = (zeros >> (outputs * bits % 32) & (2**bits - 1)) + 1
    groups = parts["g_idx"].long()
    return (integers - zeros[groups]).double() * parts["scales"].double()[groups]


@pytest.fixture(scope="module", params=["int4", "int8"])
def matrix(request: pytest.FixtureRequest) -> QuantizedMatrix:
    weight = torch.randn(96, 384, generator=torch.Generator().manual_seed(1))
    weight[3], weight[4, 5] = 0.0, 1e4
    return quantize(weight, request.param)


def test_parts_mean_the_numbers_of_the_matrix(matrix: QuantizedMatrix) -> None:
    parts = to_parts(matrix)
    assert torch.equal(plain_numbers(parts, BITS[matrix.format]).t(), dequantize(matrix).double())
    again = from_parts("x", parts, matrix.format, torch.float32)
    assert torch.equal(again.words, matrix.words)
    assert torch.equal(again.scales, matrix.scales)


def test_scales_of_others_keep_their_numbers(matrix: QuantizedMatrix) -> None:
    parts = to_parts(matrix)
    parts["scales"] = (torch.rand(parts["scales"].shape) / 100).half()
    found = from_parts("x", parts, matrix.format, torch.float32)
    assert torch.equal(dequantize(found).double(), plain_numbers(parts, BITS[matrix.format]).t().float().double())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("g_idx", lambda part: part.flip(0), "act-order"),
        ("qzeros", lambda part: part + 1, "sym=True"),
    ],
)
def test_other_orders_and_zeros_are_refused(
    matrix: QuantizedMatrix, part: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    parts = to_parts(matrix)
    parts[part] = change(parts[part])
    with pytest.raises(SnapshotError, match=message):
        from_parts("h.0.attn.c_attn.weight", parts, matrix.format, torch.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with its projections in 4 bits. Do not write to it."""
    folder = tmp_path_factory.mktemp("gptq") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "modelscope_polylm.packaging.tokenizer.parity.corpus_strings", lambda: iter([("natural en", "a")])
        )
        package_snapshot(TINY_FOLDER, folder, quantization=Quantization("int4", "round", device="cpu"))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def change_config(folder: Path, **settings: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(values))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "awq"}, "quant_method 'awq', but only 'gptq'"),
        ({"quant_method": None}, "quant_method None"),
        ({"bits": 3}, "bits 3, but only 4 and 8"),
        ({"bits": "4"}, "bits '4'"),
        ({"bits": [4]}, r"bits \[4\]"),
        ({"bits": True}, "bits True"),
        ({"group_size": 64}, "group_size 64, but only 128"),
        ({"group_size": -1}, "group_size -1"),
        ({"desc_act": True}, "desc_act True, but only False"),
        ({"sym": False}, "sym False"),
        ({"lm_head": True}, "lm_head True"),
        ({"checkpoint_format": "gptq_v2"}, "checkpoint_format 'gptq_v2'"),
        ({"pack_dtype": "int8"}, "pack_dtype 'int8'"),
        ({"dynamic": {"+:h.0": {"bits": 8}}}, "rules for single layers"),
        ({"bits": 8}, "qweight"),
    ],
)
def test_settings_that_are_not_read_here(folder: Path, settings: dict[str, Any], message: str) -> None:
    change_config(folder, **settings)
    with pytest.raises(SnapshotError, match=message):
        open_snapshot(folder)


def test_settings_that_are_no_object(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": "gptq"}))
    with pytest.raises(SnapshotError, match="no object with settings"):
        open_snapshot(folder)


NAME = "transformer.h.1.mlp.c_fc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{NAME}.g_idx"), r"h.1.mlp.c_fc.g_idx \[256\] is missing"),
        (lambda tensors: tensors.pop(f"{NAME}.qweight"), r"h.1.mlp.c_fc.qweight \[32, 1024\] is missing"),
        (
            lambda tensors: tensors.update({f"{NAME}.qweight": tensors[f"{NAME}.qweight"].t().contiguous()}),
            r"qweight has shape \[1024, 32\], expected \[32, 1024\]",
        ),
        (
            lambda tensors: tensors.update({f"{NAME}.g_idx": tensors[f"{NAME}.g_idx"].long()}),
            "g_idx holds int64, expected int32",
        ),
        (
            lambda tensors: tensors.update({f"{NAME}.scales": tensors[f"{NAME}.scales"].int()}),
            "scales holds int32, expected one of float32",
        ),
        (lambda tensors: tensors.update({f"{NAME}.weight": torch.zeros(256, 1024)}), "unexpected"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    change_tensors(folder, change)
    with pytest.raises(SnapshotError, match=message):
        open_snapshot(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors[f"{NAME}.g_idx"].copy_(tensors[f"{NAME}.g_idx"].flip(0)), "act-order"),
        (lambda tensors: tensors[f"{NAME}.qzeros"].zero_(), "sym=True"),
        (lambda tensors: tensors[f"{NAME}.scales"][0].fill_(float("nan")), "h.1.mlp.c_fc.scales holds NaN"),
        (lambda tensors: tensors["transformer.ln_f.bias"].fill_(float("inf")), "ln_f.bias holds NaN"),
    ],
)
def test_contents_that_cannot_be_used(folder: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    change_tensors(folder, change)
    snapshot = open_snapshot(folder)
    with pytest.raises(SnapshotError, match=message):
        snapshot.weight_files.load_gptq(snapshot.config, torch.device("cpu"), torch.float32)


def test_a_folder_as_gptqmodel_leaves_it(folder: Path) -> None:
    """Parts in another order, scales and biases in float16, and rope_parameters, which GPT-2 does not read."""

    def reorder(tensors: dict[str, Tensor]) -> None:
        halves = {name: each.half() for name, each in tensors.items() if name.endswith(("scales", "attn.bias"))}
        for name in sorted(tensors, reverse=True):
            tensors[name] = halves.get(name, tensors.pop(name))

    expected = open_snapshot(folder)
    before = expected.weight_files.load_gptq(expected.config, torch.device("cpu"), torch.float32)
    numbers = {name: dequantize(each) for name, each in before.items() if isinstance(each, QuantizedMatrix)}
    change_tensors(folder, reorder)
    values = json.loads((folder / "config.json").read_text())
    values["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
    (folder / "config.json").write_text(json.dumps(values))
    snapshot = open_snapshot(folder)
    after = snapshot.weight_files.load_gptq(snapshot.config, torch.device("cpu"), torch.float32)
    assert len(numbers) == 4 * snapshot.config.layers
    for name, number in numbers.items():
        found = after[name]
        assert isinstance(found, QuantizedMatrix)
        assert torch.equal(dequantize(found), number)
    values["quantization_config"] = None
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(SnapshotError, match="rope_parameters"):
        open_snapshot(folder)


def test_no_adapter_is_merged_into_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(OptionError, match="no adapter can be merged"):
        open_snapshot(folder, adapter=tmp_path / "adapter")
