"""`polylm info`: facts of a model, and what fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.backends import placement
from modelscope_polylm.backends.placement import Memory, memories
from modelscope_polylm.cli import info
from modelscope_polylm.cli.info import PROCESS_BYTES, model_facts
from modelscope_polylm.errors import DownloadError, SnapshotError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.releases import RELEASES

GPU = Memory("cuda:0 H100", 80_000_000_000, 78_000_000_000, "bfloat16")
SMALL = Memory("RAM", 16_000_000_000, 12_000_000_000, "float32")


def test_bundled_model(tiny: TextGenerator) -> None:
    facts = model_facts("tiny", None, [SMALL])
    weights = 4_058_624
    assert facts["parameters"] == weights
    assert facts["weight_bytes"]["bfloat16"] == 2 * weights and facts["weight_bytes"]["float32"] == 4 * weights
    assert facts["weight_bytes"]["int8"] < 1.4 * weights
    assert facts["release"]["name"] == "tiny"
    assert facts["folder"] == str(TINY_FOLDER)
    assert facts["prompt"] == "<|user|>\nHello\n<|assistant|>\n"
    assert facts["defaults"]["num_beams"] == 4
    assert facts["machine"][0]["fits"]


def test_release_that_is_not_here() -> None:
    facts = model_facts("13b", None, [GPU, SMALL])
    assert facts["folder"] is None
    assert facts["parameters"] == 13_906_790_400
    assert facts["cache_bytes_per_1000_tokens"]["bfloat16"] == 819_200_000
    assert facts["needed_bytes"]["bfloat16"] == 2 * 13_906_790_400 + 2048 * 819_200 + PROCESS_BYTES
    assert facts["download_bytes"] == RELEASES["13b"].download_bytes
    assert facts["machine"][0]["cache_tokens"] == (78_000_000_000 - 2 * 13_906_790_400) // 819_200
    assert (facts["machine"][1]["fits"], facts["machine"][1]["cache_tokens"]) == (False, 0)
    # what a card of 24 GB can hold
    assert facts["weight_bytes"]["int8"] <= 14.3e9 and facts["weight_bytes"]["int4"] <= 8.2e9
    assert [fit["fits"] for fit in facts["machine"][1]["quantizations"].values()] == [False, False, True]
    assert model_facts("DAMO-NLP-MT/polylm-1.7b", None, [])["parameters"] == 1_737_084_928


def test_unknown_models(tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        model_facts("somebody/something", None, [])
    for name in ("nothing", str(tmp_path)):
        with pytest.raises(SnapshotError):
            model_facts(name, None, [])


def test_page(polylm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "memories", lambda: [GPU, SMALL])
    outcome = polylm("info", "--model", "assistant-13b")
    assert outcome.exit_code == 0
    for line in (
        "  model_id damo/nlp_polylm_assistant_13b_text_generation",
        "  not on this machine: the first use downloads 30.8 GB",
        "  13,906,790,400 parameters",
        "  weights in bfloat16: 27.8 GB",
        "  cache per 1,000 tokens in bfloat16: 819.2 MB",
        "  needed in all in bfloat16, with one full context: 30.5 GB",
        "  RAM: 12.0 GB of 16.0 GB free; the weights in float32 do not fit",
        "    fits in int4 with a cache of 2,519 tokens",
        "  cuda:0 H100: 78.0 GB of 80.0 GB free; fits in bfloat16 with a cache of 61,262 tokens",
        "  <|user|>",
        "  num_beams 4",
    ):
        assert line in outcome.output.splitlines()


def test_folder_that_is_no_release(polylm: Callable[..., Any], random_snapshot: Path) -> None:
    outcome = polylm("info", "--model", str(random_snapshot))
    assert "  unknown: neither configuration.json nor the folder's name tells; pass --release" in outcome.output
    assert f"  folder {random_snapshot}" in outcome.output
    assert "  plain texts only: how messages are written is not known" in outcome.output
    facts = json.loads(polylm("info", "--model", str(random_snapshot), "--json").output)
    assert (facts["release"], facts["release_source"], facts["prompt_format"], facts["prompt"]) == (None,) * 4


def test_release_is_told_by_its_source(
    polylm: Callable[..., Any], random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_facts("tiny", None, [])["release_source"] == "the name of the model"
    configured = Path(shutil.copytree(random_snapshot, tmp_path / "configured"))
    (configured / "configuration.json").write_text('{"release": "assistant-13b"}')
    assert model_facts(str(configured), None, [])["release_source"] == "configuration.json"
    asked = polylm("info", "--model", str(random_snapshot), "--release", "multialpaca-13b").output
    assert "  recognised by what was asked for" in asked and "  name multialpaca-13b" in asked
    named = tmp_path / "nlp_polylm_13b_text_generation"
    named.symlink_to(random_snapshot)
    assert "  recognised by the folder's name" in polylm("info", "--model", str(named)).output
    # a folder with the short name of a release may hold anything
    (tmp_path / "13b").symlink_to(random_snapshot)
    monkeypatch.chdir(tmp_path)
    assert model_facts("13b", None, [])["release"] is None


def test_json(polylm: Callable[..., Any]) -> None:
    facts = json.loads(polylm("info", "--json").output)
    assert facts["machine"][0]["name"] == "RAM"
    assert facts["context"] == 512


def test_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ram = memories()[0]
    assert 0 < ram.free <= ram.total
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(placement, "CGROUP_FILES", [str(limit)])
    limit.write_text("max\n")
    assert memories()[0].total >= ram.total
    limit.write_text("1000000\n")
    assert memories()[0].total == 1_000_000 >= memories()[0].free
