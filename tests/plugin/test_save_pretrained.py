"""save_pretrained writes a folder that this pipeline and plain transformers read alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from modelscope.models import Model

from modelscope_polylm.errors import OptionError
from modelscope_polylm.hub.resolve import resolve


def test_what_is_saved_can_be_loaded(tmp_path: Path) -> None:
    model = Model.from_pretrained(str(resolve("tiny")), device="cpu")
    model.save_pretrained(tmp_path / "saved")
    again = Model.from_pretrained(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    ids = torch.tensor([model.generator.snapshot.tokenizer.encode("<|user|>\nBeijing is")])
    assert again.generate(ids, max_new_tokens=9).tolist() == model.generate(ids, max_new_tokens=9).tolist()


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    model = Model.from_pretrained(str(resolve("tiny")), device="cpu")
    with pytest.raises(OptionError, match="max_shard_size"):
        model.save_pretrained(tmp_path / "saved", shard="1GB")
