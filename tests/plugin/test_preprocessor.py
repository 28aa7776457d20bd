"""The preprocessor that ModelScope builds for a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from modelscope.preprocessors import Preprocessor

from modelscope_polylm import PolyLMPreprocessor
from modelscope_polylm.errors import InputError, OptionError, SnapshotError


@pytest.fixture(scope="module")
def preprocessor(random_snapshot: Path) -> PolyLMPreprocessor:
    return PolyLMPreprocessor(str(random_snapshot), prompt_format="assistant")


def test_text(preprocessor: PolyLMPreprocessor) -> None:
    read = preprocessor("Paris est")
    assert read["prompt"] == "Paris est"
    assert read["input_ids"].tolist() == [preprocessor.reader.tokenizer.encode("Paris est")]
    assert torch.equal(read["attention_mask"], torch.ones_like(read["input_ids"]))
    assert preprocessor.decode(read["input_ids"][0]) == "Paris est"


def test_messages(preprocessor: PolyLMPreprocessor) -> None:
    read = preprocessor({"messages": [{"role": "user", "content": "Hi"}]}, max_new_tokens=8)
    assert read["prompt"] == "<|user|>\nHi\n<|assistant|>\n"


def test_modelscope_builds_it(random_snapshot: Path) -> None:
    for task in ("text-generation", "chat"):
        built = Preprocessor.from_pretrained(str(random_snapshot), task=task)
        assert type(built) is PolyLMPreprocessor
        assert built.mode == "inference"


def test_bad_values(preprocessor: PolyLMPreprocessor, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        preprocessor(b"Paris")
    with pytest.raises(OptionError, match="needs a model_dir"):
        PolyLMPreprocessor()
    with pytest.raises(SnapshotError):
        PolyLMPreprocessor(str(tmp_path))
