"""A snapshot whose class is not GPT-2's own runs if it predicts text, and is refused if it does not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from modelscope_polylm.backends import create_backend
from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.hub.resolve import resolve
from modelscope_polylm.network.gpt2 import token_losses
from modelscope_polylm.snapshot import open_snapshot
from tests.generation.models import engine_of
from tests.generation.random_gpt2 import random_model
from tests.snapshots import build_snapshot


def load(folder: Path):
    return create_backend("native", open_snapshot(folder), torch.device("cpu"), torch.float32)


def rename_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["PolyLMHeadModel"]
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_polylm.PolyLMHeadModel"}
    (folder / "config.json").write_text(json.dumps(config))


def test_losses_equal_those_of_transformers():
    model, ids = random_model(), [5, 9, 200, 31, 7]
    engine = engine_of(model)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(token_losses(engine.decoder, ids), expected, atol=1e-4, rtol=1e-4)


def test_random_weights_of_another_class_are_refused(tmp_path: Path):
    folder = build_snapshot(tmp_path / "snapshot")
    load(folder)
    rename_class(folder)
    with pytest.raises(SnapshotError, match=rf"PolyLMHeadModel.*{math.log(512):.2f}.*not GPT-2"):
        load(folder)


def test_trained_weights_of_another_class_are_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "tiny"
    shutil.copytree(resolve("tiny"), folder)
    rename_class(folder)
    assert load(folder).engine is not None
