"""`pipeline(model=...)` takes paths, names of releases, and folders of Hugging Face, and leaves other models alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm import PolyLMChatPipeline, PolyLMTextGenerationPipeline
from modelscope_polylm.errors import DownloadError, InputError, OptionError, SnapshotError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from tests.local_hub import LocalHub

QUESTION = {"messages": [{"role": "user", "content": "Rome"}]}
ASSISTANT = "damo/nlp_polylm_assistant_13b_text_generation"


@pytest.fixture
def hugging_face(tmp_path: Path, random_snapshot: Path) -> Path:
    """A folder as it comes from Hugging Face: without a configuration.json."""
    folder = Path(shutil.copytree(random_snapshot, tmp_path / "copy"))
    (folder / "configuration.json").unlink()
    return folder


@pytest.mark.parametrize("model", [TINY_FOLDER, str(TINY_FOLDER), "tiny", "TINY"])
def test_bundled_model(model: Any) -> None:
    pipe = pipeline(Tasks.text_generation, model=model, device="cpu")
    assert type(pipe) is PolyLMTextGenerationPipeline
    assert pipe("Rome", max_new_tokens=2)["text"].startswith("Rome")
    assert type(pipeline(Tasks.chat, model, device="cpu")) is PolyLMChatPipeline


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("configuration", [None, {}, {"release": "assistant-13b"}, {"pipeline": None}], ids=str)
def test_folder_that_names_no_pipeline(
    hugging_face: Path, kind: Callable[[Path], Any], configuration: dict[str, Any] | None
) -> None:
    if configuration is not None:
        (hugging_face / "configuration.json").write_text(json.dumps(configuration))
    pipe = pipeline(Tasks.text_generation, model=kind(hugging_face), device="cpu")
    assert type(pipe) is PolyLMTextGenerationPipeline and pipe.framework == "pytorch"
    assert pipe("Rome", max_new_tokens=2)["text"].startswith("Rome")
    if configuration and "release" in configuration:
        assert pipe(QUESTION, max_new_tokens=2, num_beams=1)["message"]["role"] == "assistant"
    else:
        with pytest.raises(InputError, match="pass release= or prompt_format="):
            pipe(QUESTION)
    chat = pipeline(Tasks.chat, model=kind(hugging_face), device="cpu", release="assistant-13b")
    assert chat(QUESTION, max_new_tokens=2, num_beams=1)["message"]["role"] == "assistant"


def test_relative_folder_is_no_hub_id(hugging_face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hugging_face.parent / "damo").mkdir()
    folder = hugging_face.rename(hugging_face.parent / ASSISTANT)
    monkeypatch.chdir(hugging_face.parent)
    pipe = pipeline(Tasks.text_generation, model=ASSISTANT, device="cpu")
    assert pipe.model.model_dir == str(folder)
    assert pipe(QUESTION, max_new_tokens=2, num_beams=1)["message"]["role"] == "assistant"


@pytest.mark.parametrize("name", ["assistant-13b", "DAMO-NLP-MT/polylm-chat-13b"])
def test_names_of_releases_come_from_modelscope(hub: LocalHub, random_snapshot: Path, name: str) -> None:
    hub.publish(random_snapshot, ASSISTANT, "v1.0.0")
    pipe = pipeline(Tasks.text_generation, model=name, device="cpu")
    assert pipe.model.generator.snapshot.release.name == "assistant-13b"


def test_release_that_cannot_be_downloaded() -> None:
    with pytest.raises(DownloadError, match="damo/nlp_polylm_13b_text_generation"):
        pipeline(Tasks.text_generation, model="13b", device="cpu")


def test_options_reach_the_model(hugging_face: Path) -> None:
    with pytest.raises(OptionError, match="did you mean torch_dtype"):
        pipeline(Tasks.text_generation, model=hugging_face, device="cpu", torch_dtpye="float32")
    with pytest.raises(OptionError, match=r"no option 'device_map': load the model with backend='transformers' to use"):
        pipeline(Tasks.text_generation, model=hugging_face, device_map="auto")


def test_damaged_folder_is_explained(hugging_face: Path) -> None:
    (hugging_face / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SnapshotError, match=r"pytorch_model\.bin is empty"):
        pipeline(Tasks.text_generation, model=hugging_face, device="cpu")


def test_other_models_are_left_to_modelscope(hugging_face: Path) -> None:
    config = {**json.loads((hugging_face / "config.json").read_text()), "model_type": "llama"}
    (hugging_face / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception) as error:
        pipeline(Tasks.text_generation, model=str(hugging_face), device="cpu")
    assert "PolyLM" not in str(error.value)
