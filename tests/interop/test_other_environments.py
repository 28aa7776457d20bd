"""A package in engines that need an environment of their own, which is made with pip on the first run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.network.gpt2 import Decoder, prefill_whole
from modelscope_polylm.network.kernels.lm_head import lm_head_logits
from modelscope_polylm.packaging.comparison import compare_snapshots
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.packaging.quantized_source import Quantization
from modelscope_polylm.snapshot import open_snapshot
from tests.interop.comparison import check_transformers
from tests.interop.run_programs import run_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("environment", ["transformers-4.40", "transformers-4.57"])
def test_older_transformers(environment: str, package: Path, expected: dict[str, Any], expected_file: Path) -> None:
    found = run_program(environment, "with_transformers.py", package, expected_file)
    assert found["version"].startswith(environment.rpartition("-")[2])
    check_transformers(found, expected, splits_special_tokens=environment != "transformers-4.40")


def test_ctranslate2(package: Path, expected: dict[str, Any], expected_file: Path, tmp_path: Path) -> None:
    found = run_program("ctranslate2", "with_ctranslate2.py", package, expected_file, tmp_path / "converted")
    assert found["greedy"] == expected["greedy"]
    assert found["beams"] == expected["beams"]


@pytest.mark.slow  # its sources are built
def test_gptqmodel(package: Path, tmp_path: Path) -> None:
    quantised, theirs, file = tmp_path / "quantised", tmp_path / "theirs", tmp_path / "ids.json"
    package_snapshot(TINY_FOLDER, quantised, quantization=Quantization("int4", device="cpu"))
    snapshot = open_snapshot(quantised)
    ids = snapshot.tokenizer.encode("Rome is the capital of Italy. Rom ist die Hauptstadt von Italien.")
    file.write_text(json.dumps(ids))
    found = run_program("gptqmodel", "with_gptqmodel.py", package, theirs, quantised, file)
    assert compare_snapshots(theirs, TINY_FOLDER, device="cpu").total.kl < 0.05
    for folder, name in ((theirs, "own"), (quantised, "ours")):
        opened, computed = open_snapshot(folder), torch.tensor(found[name])
        weights = opened.weight_files.load_gptq(opened.config, torch.device("cpu"), torch.float32)
        decoder = Decoder(opened.config, weights)
        logits = lm_head_logits(prefill_whole(decoder, ids), decoder.embedding, opened.config.vocab_size)
        assert (logits - computed).abs().max() < 0.2  # bfloat16; the logits have a deviation of 2.7
        assert (logits.argmax(1) == computed.argmax(1)).float().mean() > 0.8


@pytest.mark.slow  # an environment of 4 GB
def test_vllm_on_the_cpu(package: Path, expected: dict[str, Any], expected_file: Path) -> None:
    found = run_program("vllm", "with_vllm.py", package, expected_file, timeout=1500)
    assert found["text_ids"] == expected["text_ids"]
    assert found["prompts"] == expected["prompts"]
    assert found["greedy"] == expected["greedy"]
