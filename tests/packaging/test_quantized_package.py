"""Packages in fewer bits: what GPTQ makes good, what is in the folder, and that the engine answers as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from modelscope_polylm.errors import DependencyError, InputError, OptionError, PolyLMError, SnapshotError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.network.gpt2 import Decoder, prefill_whole
from modelscope_polylm.network.quantization import FORMATS, QuantizedMatrix, dequantize, quantize, unpack
from modelscope_polylm.packaging import quantized_source
from modelscope_polylm.packaging.calibration import compensated
from modelscope_polylm.packaging.comparison import compare_snapshots
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.packaging.quantized_source import Quantization
from modelscope_polylm.packaging.verify import verify_snapshot
from modelscope_polylm.snapshot import open_snapshot
from tests.packaging.test_comparison import one_thread
from tests.snapshots import build_snapshot

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("short_corpus", "one_thread")
TEXT = "".join(f"{city} is the capital of {land}.\n" for city, land in (("Rome", "Italy"), ("Tokyo", "Japan")) * 20)


def correlated(tokens: int, inputs: int, seed: int) -> Tensor:
    """Inputs [tokens, inputs] that depend on each other, as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(7)) / inputs**0.5
    return torch.randn(tokens, inputs, generator=generator) @ mixing


def plain_gptq(weight: Tensor, squares: Tensor, quantization: str) -> Tensor:
    """The integers of the paper's procedure (arXiv 2210.17323, algorithm 1), column after column, without blocks."""
    kind, weight = FORMATS[quantization], weight.double()
    squares = squares.double() + 0.01 * squares.diagonal().mean() * torch.eye(len(squares))
    factor = torch.linalg.cholesky(torch.linalg.inv(squares), upper=True)
    integers = torch.empty(weight.shape)
    for column in range(weight.shape[1]):
        if column % 128 == 0:
            _, scales = kind.choose(weight[:, column : column + 128].float())
        limit = 2 ** (kind.bits - 1)
        integers[:, column] = (weight[:, column] / scales[:, 0]).round().clamp(-limit, limit - 1)
        error = (weight[:, column] - integers[:, column] * scales[:, 0]) / factor[column, column]
        weight[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return integers


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_rounding_errors_are_made_good(quantization: str) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    inputs, others = correlated(2000, 256, 1), correlated(500, 256, 2)
    matrix = compensated(weight.clone(), inputs.t() @ inputs, quantization)
    expected = plain_gptq(weight, inputs.t() @ inputs, quantization)
    found = unpack(matrix.words, FORMATS[quantization].bits, 256)
    assert (found != expected).double().mean() < 0.002  # a few lie in the middle between two integers

    def error(of: QuantizedMatrix) -> float:
        return float((others @ (dequantize(of, torch.float32) - weight).t()).square().mean())

    assert error(matrix) < 0.75 * error(quantize(weight, quantization))


def test_inputs_that_never_occur_and_outputs_of_zeros() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    weight[5] = 0.0
    inputs = correlated(300, 256, 1)
    inputs[:, 17] = 0.0
    numbers = dequantize(compensated(weight.clone(), inputs.t() @ inputs, "int8"), torch.float32)
    assert torch.equal(numbers[5], torch.zeros(256))
    assert (numbers[:, 17] - weight[:, 17]).abs().max() < 0.1


def test_inputs_that_are_not_finite() -> None:
    with pytest.raises(PolyLMError, match="not finite"):
        compensated(torch.randn(64, 128), torch.full((128, 128), float("nan")), "int4")


@pytest.fixture(scope="module", params=["int4", "int8"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, quantised over the built-in sentences, in two shards. Do not write to it."""
    folder: Path = tmp_path_factory.mktemp("quantized") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "modelscope_polylm.packaging.tokenizer.parity.corpus_strings", lambda: iter([("natural en", "a")])
        )
        quantization = Quantization(request.param, device="cpu")
        package_snapshot(TINY_FOLDER, folder, max_shard_size="2MB", quantization=quantization)
    return folder


def test_what_other_engines_read(quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    bits = {"int4": 4, "int8": 8}[quantized.name]
    wanted = {"quant_method": "gptq", "bits": bits, "group_size": 128, "sym": True, "desc_act": False}
    assert config["quantization_config"].items() >= wanted.items()
    assert config["quantization_config"]["checkpoint_format"] == "gptq"
    files = sorted(quantized.glob("model-*.safetensors"))
    assert len(files) > 1
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    name = "transformer.h.3.mlp.c_proj"
    assert tensors[f"{name}.qweight"].shape == (1024 * bits // 32, 256)
    assert tensors[f"{name}.qzeros"].shape == (8, 256 * bits // 32)
    assert tensors[f"{name}.scales"].shape == (8, 256)
    assert {str(tensors[f"{name}.{part}"].dtype)[6:] for part in ("qweight", "qzeros", "g_idx")} == {"int32"}
    assert tensors["transformer.wte.weight"].dtype == torch.bfloat16
    assert f"{name}.weight" not in tensors
    index = json.loads((quantized / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)


def test_a_quantised_package_has_no_faults(quantized: Path) -> None:
    report = verify_snapshot(quantized, device="cpu")
    assert report.faults == []


def test_answers_are_those_of_the_numbers_that_it_holds(quantized: Path) -> None:
    snapshot = open_snapshot(quantized)
    weights = snapshot.weight_files.load_gptq(snapshot.config, torch.device("cpu"), torch.float32)
    model = GPT2LMHeadModel.from_pretrained(TINY_FOLDER, dtype=torch.float32)
    state = model.state_dict()
    for name, weight in weights.items():
        plain = dequantize(weight).t() if isinstance(weight, QuantizedMatrix) else weight
        state[f"transformer.{name}"].copy_(plain)
    backend = TextGenerator.load(quantized, device="cpu").backend
    call = {"max_new_tokens": 12, "max_length": None, "do_sample": False, "num_beams": 1}
    options = GenerationOptions.from_layers({"eos_token_id": 2}, call)
    for text in ("Rome is the capital of Italy.\nTranslate this sentence from English to German.", "Paris"):
        ids = snapshot.tokenizer.encode(text)
        logits = model(torch.tensor([ids])).logits[0]
        hidden = prefill_whole(Decoder(snapshot.config, weights), ids)
        assert torch.allclose(hidden @ weights["wte.weight"].t(), logits, atol=1e-3)  # type: ignore[union-attr]
        settings = {"max_new_tokens": 12, "do_sample": False, "num_beams": 1, "eos_token_id": 2, "pad_token_id": 2}
        expected = model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()  # type: ignore[operator]
        found = list(backend.generate([ids], options)[0][0].ids)
        assert found == expected[: len(found)]
        assert set(expected[len(found) :]) <= {2}


def test_it_predicts_nearly_as_before_and_better_than_after_plain_rounding(quantized: Path, tmp_path: Path) -> None:
    rounded = tmp_path / "rounded"
    package_snapshot(TINY_FOLDER, rounded, quantization=Quantization(quantized.name, "round", device="cpu"))
    text = (Path(__file__).parents[2] / "examples" / "tiny_corpus.txt").read_text(encoding="utf-8")
    own, other = (compare_snapshots(folder, TINY_FOLDER, text, device="cpu") for folder in (quantized, rounded))
    assert own.total.kl < {"int4": 0.05, "int8": 0.001}[quantized.name]
    assert own.total.kl < other.total.kl


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    quantization = Quantization("int4", calibration=TEXT, device="cpu")
    report = package_snapshot(TINY_FOLDER, tmp_path / "out", quantization=quantization)
    tokens = len(open_snapshot(TINY_FOLDER).tokenizer.encode(TEXT))
    assert f"over a text of your own of {tokens:,} tokens" in report.warnings[-1]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "those of projections in int4 (GPTQ, groups of 128)" in card


def test_long_calibration_texts_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_source, "MOST_TOKENS", 100)
    report = package_snapshot(TINY_FOLDER, tmp_path / "out", quantization=Quantization("int4", "gptq", TEXT, "cpu"))
    assert "of 100 tokens" in report.warnings[-1]


def test_a_run_that_quantises_is_never_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call: dict[str, Any] = {"max_shard_size": "2MB", "quantization": Quantization("int8", "round", device="cpu")}
    with monkeypatch.context() as broken:
        broken.setattr("modelscope_polylm.packaging.package._Packaging.write_small_files", lambda *unused: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            package_snapshot(TINY_FOLDER, tmp_path / "out", **call)
    assert (tmp_path / "out.partial").is_dir()
    report = package_snapshot(TINY_FOLDER, tmp_path / "out", **call)
    assert report.resumed == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int3",), "quantization='int3' cannot be packaged"),
        (("fp8",), "quantization='fp8' cannot be packaged"),
        (("int4", "awq"), "method='awq' is unknown"),
        (("int4", "round", TEXT), "reads no calibration text"),
    ],
)
def test_quantizations_that_do_not_exist(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Quantization(*arguments)


def test_what_is_not_quantised(quantized: Path, tmp_path: Path) -> None:
    quantization = Quantization("int4", "round", device="cpu")
    with pytest.raises(OptionError, match="quantised already"):
        package_snapshot(quantized, tmp_path / "out", quantization=quantization)
    with pytest.raises(OptionError, match="quantised already"):
        package_snapshot(quantized, tmp_path / "out")
    with pytest.raises(OptionError, match="quantised already"):
        TextGenerator.load(quantized, device="cpu", quantization="int8")
    with pytest.raises(OptionError, match="16 bits"):
        package_snapshot(TINY_FOLDER, tmp_path / "out", "float32", quantization=quantization)
    with pytest.raises(InputError, match="calibration text is empty"):
        package_snapshot(TINY_FOLDER, tmp_path / "out", quantization=Quantization("int4", calibration="", device="cpu"))
    small = build_snapshot(tmp_path / "small", width=192)
    with pytest.raises(OptionError, match="hidden size 192"):
        package_snapshot(small, tmp_path / "out", release="13b", quantization=quantization)


def test_transformers_says_what_it_lacks(quantized: Path) -> None:
    with pytest.raises(DependencyError, match="transformers needs more packages"):
        TextGenerator.load(quantized, device="cpu", backend="transformers")


def test_plain_numbers_are_not_read_from_it(quantized: Path) -> None:
    snapshot = open_snapshot(quantized)
    with pytest.raises(SnapshotError, match="its plain numbers are needed here"):
        snapshot.weight_files.load(snapshot.config, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("method", ["gptq", "round"])
def test_weights_that_are_not_finite(tmp_path: Path, method: str) -> None:
    source = build_snapshot(tmp_path / "source", "safetensors")
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    tensors[name][3, 4] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SnapshotError, match=r"Tensor h\.1\.mlp\.c_fc\.weight cannot be quantised: it holds NaN"):
        package_snapshot(
            source, tmp_path / "out", release="13b", quantization=Quantization("int4", method, None, "cpu")
        )
    assert not (tmp_path / "out").exists()


def test_outliers_overflow_nothing(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "safetensors", dtype=torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    tensors[name][3, 4] = 1e4
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    package_snapshot(
        source, tmp_path / "out", "float16", "13b", quantization=Quantization("int4", "round", None, "cpu")
    )
    snapshot = open_snapshot(tmp_path / "out")
    matrix = snapshot.weight_files.load_gptq(snapshot.config, torch.device("cpu"), torch.float32)["h.1.mlp.c_fc.weight"]
    assert isinstance(matrix, QuantizedMatrix)
    assert dequantize(matrix)[4, 3].item() == pytest.approx(1e4, rel=0.01)
