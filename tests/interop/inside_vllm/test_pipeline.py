"""pipeline(..., backend='vllm') on a snapshot of 2023 whose network knows more ids than its tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks
from safetensors.torch import save_file

import modelscope_polylm
from modelscope_polylm.errors import DeviceError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.packaging.cache import packages_folder
from modelscope_polylm.snapshot import open_snapshot
from tests.interop.inside_vllm.conftest import SMALL
from tests.snapshots import build_snapshot

assert modelscope_polylm
TEXTS = ["Beijing is the capital", "Paris", "東京は日本の首都です。Paris est la capitale de la France.", "1147"]
GREEDY = {"num_beams": 1, "do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_snapshot(
        tmp_path_factory.mktemp("old") / "snapshot", width=128, heads=2, vocab_size=512 + 40, spread=0.2
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pipes(folder: Path, cache: Path) -> Iterator[tuple[Any, Any, int]]:
    """vLLM's pipeline, the native one, and how many packages there are."""
    arguments = {"model": str(folder), "release": "assistant-13b", "device": "cpu"}
    before = os.environ.get("MODELSCOPE_CACHE")
    os.environ["MODELSCOPE_CACHE"] = str(cache)
    pipe = pipeline(Tasks.text_generation, **arguments, backend="vllm", **SMALL)
    packages = [path for path in packages_folder().iterdir() if path.is_dir()]
    if before is not None:
        os.environ["MODELSCOPE_CACHE"] = before
    yield pipe, pipeline(Tasks.text_generation, **arguments), len(packages)
    pipe.model.generator.backend.close()


def test_it_is_packaged_and_answers_as_the_native_backend(pipes: Any, cache: Path) -> None:
    pipe, native, packages = pipes
    assert packages == 1 and cache in pipe.model.generator.snapshot.folder.parents
    assert pipe.model.generator.backend.name == "vllm"
    assert pipe(TEXTS, **GREEDY) == native(TEXTS, **GREEDY)
    chat = {"messages": [{"role": "user", "content": "Paris"}]}
    assert pipe(chat, **GREEDY) == native(chat, **GREEDY)


def test_beams_are_those_of_transformers(pipes: Any, folder: Path) -> None:
    # The release's own options: four beams. Ids that the tokenizer lacks count in the log-probabilities of both.
    other = pipeline(Tasks.text_generation, model=str(folder), release="assistant-13b", backend="transformers")
    rules = {"beam_rules": "5", "max_new_tokens": 12}
    assert pipes[0](TEXTS, **rules) == other(TEXTS, **rules)


def test_a_list_is_handed_over_whole(pipes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, backend, calls = pipes[0], pipes[0].model.generator.backend, []
    submit = backend.submit

    def noted(requests: Any, partial: bool, at_once: int | None) -> Any:
        calls.append((len(requests), at_once))
        return submit(requests, partial, at_once)

    monkeypatch.setattr(backend, "submit", noted)
    pipe(TEXTS * 3, **GREEDY)
    pipe(TEXTS, batch_size=3, **GREEDY)
    assert calls == [(12, None), (4, 3)]


def test_streams(pipes: Any) -> None:
    pipe, native, _ = pipes
    wanted = native(TEXTS[0], **GREEDY)
    items = list(pipe.stream_generate(TEXTS[0], **GREEDY))
    assert items[-1] == wanted and len(items) > 3
    assert list(pipe.stream_generate(TEXTS, batch_size=4, **GREEDY))[-1] == native(TEXTS, **GREEDY)


def test_ids_beyond_the_tokenizer_are_never_generated(pipes: Any) -> None:
    backend, options = pipes[0].model.generator.backend, pipes[0].model.generator.options
    hot = options({"do_sample": True, "temperature": 2.0, "top_k": 0, "max_new_tokens": 40, "num_return_sequences": 8})
    found = {id for group in backend.generate([[5, 300], [17]], hot) for answer in group for id in answer.ids}
    assert len(found) > 200 and max(found) < 512


def test_after_closing_it_says_so(pipes: Any) -> None:
    pipes[0].model.generator.backend.close()
    with pytest.raises(DeviceError, match="has been stopped"):
        pipes[0](TEXTS[0], **GREEDY)


def test_an_adapter_is_merged_into_a_package(package: Path, tmp_path: Path) -> None:
    write_random_adapter(tmp_path / "adapter", package)
    options: dict[str, Any] = {"device": "cpu", "adapter": tmp_path / "adapter"}
    answers = []
    settings: dict[str, Any]
    for engine, settings in (("native", {}), ("vllm", SMALL)):
        generator: Any = TextGenerator.load(package, backend=engine, **options, **settings)
        chosen = generator.options({"num_beams": 1, "max_new_tokens": 12})
        answers.append(generator.reply([generator.reader.read("Rome is", chosen)], chosen)[0].texts)
        if engine == "vllm":
            generator.backend.close()
    plain = TextGenerator.load(package, device="cpu")
    chosen = plain.options({"num_beams": 1, "max_new_tokens": 12})
    assert answers[0] == answers[1] != plain.reply([plain.reader.read("Rome is", chosen)], chosen)[0].texts


def write_random_adapter(folder: Path, base: Path) -> None:
    """peft's folder of a random adapter of c_attn, without peft."""
    config = open_snapshot(base).config
    torch.manual_seed(0)
    tensors = {}
    for layer in range(config.layers):
        name = f"base_model.model.transformer.h.{layer}.attn.c_attn"
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, config.hidden_size) * 0.1
        tensors[f"{name}.lora_B.weight"] = torch.randn(3 * config.hidden_size, 2) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
