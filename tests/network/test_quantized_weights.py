from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.network import weights as weights_module
from modelscope_polylm.network.quantization import QUANTIZATIONS, QuantizedMatrix, quantize
from modelscope_polylm.network.weights import WeightFiles, format_of, weight_bytes
from tests.snapshots import LAYOUTS, build_snapshot, checkpoint_tensors, random_model, read_config, write_weights

CPU = torch.device("cpu")


def load(folder: Path, quantization: str, change=None):
    return WeightFiles(folder).load_quantized(read_config(folder), CPU, torch.float32, quantization, change)


def equal(found, expected) -> bool:
    if isinstance(found, Tensor):
        return torch.equal(found, expected)
    return torch.equal(found.words, expected.words) and torch.equal(found.scales, expected.scales)


@pytest.mark.parametrize(("layout", "quantization"), [*zip(LAYOUTS, ["int8", *QUANTIZATIONS], strict=True)])
def test_loading_equals_quantizing_what_was_loaded(
    tmp_path: Path, layout: str, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "BLOCK_ROWS", 100)  # the embedding comes in pieces
    folder = build_snapshot(tmp_path, layout, torch.bfloat16)
    plain = WeightFiles(folder).load(read_config(folder), CPU, torch.float32)
    for name, found in load(folder, quantization).items():
        chosen = format_of(name, quantization)
        assert isinstance(found, QuantizedMatrix) == (chosen is not None)
        assert found.dtype == torch.float32
        assert equal(found, quantize(plain[name], chosen) if chosen else plain[name]), name


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_bytes_are_known_before(random_snapshot: Path, quantization: str | None) -> None:
    config = read_config(random_snapshot)
    if quantization is None:
        loaded = WeightFiles(random_snapshot).load(config, CPU, torch.float32)
    else:
        loaded = load(random_snapshot, quantization)
    assert weight_bytes(config, 4, quantization) == sum(tensor.nbytes for tensor in loaded.values())


def test_changes_come_before_rounding(random_snapshot: Path) -> None:
    name = "h.0.mlp.c_fc.weight"
    plain = WeightFiles(random_snapshot).load(read_config(random_snapshot), CPU, torch.float32)
    changed = load(random_snapshot, "int8", lambda own, tensor: tensor * 3 if own == name else tensor)
    assert equal(changed[name], quantize(plain[name] * 3, "int8"))
    assert equal(changed["wte.weight"], quantize(plain["wte.weight"], "int8"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["h.1.attn.c_attn.weight", "wte.weight", "ln_f.bias"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, name: str, value: float) -> None:
    folder = build_snapshot(tmp_path, "safetensors", torch.float32)
    tensors = {stored: tensor.clone() for stored, tensor in checkpoint_tensors(random_model(), torch.float32).items()}
    tensors[f"transformer.{name}"].view(-1)[5] = value
    write_weights(folder, "safetensors", tensors)
    with pytest.raises(SnapshotError, match=f"tensor {name} holds NaN or infinity"):
        load(folder, "int8")


@pytest.mark.parametrize("same", [True, False])
def test_another_output_layer_is_told(tmp_path: Path, same: bool, caplog: pytest.LogCaptureFixture) -> None:
    folder = build_snapshot(tmp_path, "safetensors", torch.float32)
    tensors = checkpoint_tensors(random_model(), torch.float32)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] * (1 if same else 2)
    write_weights(folder, "safetensors", tensors)
    load(folder, "int4")
    assert ("lm_head.weight differs" in caplog.text) is not same
