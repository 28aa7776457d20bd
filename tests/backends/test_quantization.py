"""`quantization` and `kv_cache_dtype` of the native backend, and what the other backends say of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelscope_polylm.backends import placement
from modelscope_polylm.backends.placement import check_memory
from modelscope_polylm.cli.bench.workloads import shape_config
from modelscope_polylm.errors import DeviceError, OptionError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.network.quantization import QUANTIZATIONS, QuantizedMatrix
from tests.test_tiny import TINY

CONFIG = shape_config("13b")
QUESTION = "Rome is the capital of Italy.\nTranslate this sentence from English to German."


def load(**options: Any) -> TextGenerator:
    return TextGenerator.load(TINY, device="cpu", **options)


def answer(generator: TextGenerator) -> str:
    options = generator.options({})
    return generator.reply([generator.reader.read(QUESTION, options, chat=True)], options)[0].texts[0]


@pytest.mark.parametrize("cache", [None, "int8"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_tiny_model_still_answers(quantization: str, cache: str | None) -> None:
    generator = load(quantization=quantization, **({"kv_cache_dtype": cache} if cache else {}))
    assert answer(generator) == "Rom ist die Hauptstadt von Italien."
    decoder = generator.backend.engine.decoder
    assert isinstance(decoder.embedding, QuantizedMatrix)
    assert decoder.embedding.format == ("int8" if quantization == "int4" else quantization)


@pytest.mark.parametrize("options", [{"quantization": "int5"}, {"kv_cache_dtype": "fp8"}, {"quantization": 8}], ids=str)
def test_unknown_values_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}=.* is unknown"):
        load(**options)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_transformers_refuses_them(quantization: str) -> None:
    with pytest.raises(OptionError, match="backend='native'"):
        load(backend="transformers", quantization=quantization)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_vllm_refuses_them_before_anything_is_packaged(quantization: str) -> None:
    with pytest.raises(OptionError, match="'fp8' while it loads"):
        load(backend="vllm", quantization=quantization)


def test_a_card_that_is_too_small_is_told_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    for free, expected in (
        (24e9, r"quantization='int8' \(14.1 GB\) or quantization='fp8' \(13.9 GB\) or quantization='int4' \(7.8 GB\)"),
        (12e9, r"12.0 GB free: load them with quantization='int4' \(7.8 GB\)\."),
        (8e9, "no quantization fits either"),
    ):
        monkeypatch.setattr(placement, "free_bytes", lambda device, free=free: int(free))
        with pytest.raises(DeviceError, match=rf"27.8 GB in bfloat16 .*{expected}"):
            check_memory(CONFIG, torch.bfloat16, device)
    monkeypatch.setattr(placement, "free_bytes", lambda device: int(15.2e9))
    check_memory(CONFIG, torch.bfloat16, device, "int8")
    with pytest.raises(DeviceError, match=r"14.1 GB in int8 .*quantization='int4'"):
        monkeypatch.setattr(placement, "free_bytes", lambda device: int(15e9))
        check_memory(CONFIG, torch.bfloat16, device, "int8")


def test_an_adapter_is_merged_before_the_weights_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelscope_polylm.backends.native import NativeBackend
    from modelscope_polylm.snapshot import open_snapshot

    snapshot, seen = open_snapshot(TINY), []

    class Changes:
        def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
            seen.append(name)
            return weight

    object.__setattr__(snapshot, "adapter", Changes())
    NativeBackend(snapshot, torch.device("cpu"), torch.float32, quantization="int8")
    assert {name for name in seen if "c_attn" in name} == {f"h.{i}.attn.c_attn.weight" for i in range(4)}
