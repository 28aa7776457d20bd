"""A folder opens with the right release, prompt format and defaults, or fails with everything that is wrong with it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import OptionError, SnapshotError
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.text.prompts import FORMATS
from tests.snapshots import LAYOUTS, build_snapshot, write_json


@pytest.fixture
def folder(tmp_path: Path, random_snapshot: Path) -> Path:
    """A copy of the random snapshot that a test may change."""
    return Path(shutil.copytree(random_snapshot, tmp_path / "model"))


def update_json(file: Path, **values: Any) -> None:
    present = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, {**present, **values})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opens_every_layout(tmp_path: Path, layout: str) -> None:
    snapshot = open_snapshot(build_snapshot(tmp_path / "model", layout))
    assert snapshot.folder == tmp_path / "model"
    assert snapshot.config.vocab_size == snapshot.tokenizer.vocab_size == 512
    assert snapshot.release is snapshot.release_source is snapshot.prompt_format is None
    assert snapshot.generation == {"eos_token_id": 2}


def test_path_as_text(random_snapshot: Path) -> None:
    assert open_snapshot(str(random_snapshot)).folder == random_snapshot


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("nlp_polylm_assistant_13b_text_generation", "assistant-13b"),
        ("damo--nlp_polylm_13b_text_generation/snapshots/v1.0.3", "13b"),
        ("models/damo/nlp_polylm_multialpaca_13b_text_generation", "multialpaca-13b"),
        ("models/damo/nlp_polylm_multialpaca_13b_text_generation_ecomm", "ecomm-13b"),
        ("polylm-1.7b", "1.7b"),
    ],
)
def test_release_by_folder(tmp_path: Path, random_snapshot: Path, path: str, name: str) -> None:
    snapshot = open_snapshot(shutil.copytree(random_snapshot, tmp_path / path))
    assert snapshot.release == RELEASES[name]
    assert snapshot.release_source == "the folder's name"
    assert snapshot.prompt_format == FORMATS[RELEASES[name].prompt_format]
    assert snapshot.generation == dict(RELEASES[name].generation)


def test_release_by_working_folder(tmp_path: Path, random_snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.copytree(random_snapshot, tmp_path / "nlp_polylm_13b_text_generation")
    monkeypatch.chdir(path)
    assert open_snapshot(".").release == RELEASES["13b"]


def test_release_by_configuration(folder: Path) -> None:
    update_json(folder / "configuration.json", release="multialpaca-13b")
    snapshot = open_snapshot(folder)
    assert snapshot.release == RELEASES["multialpaca-13b"]
    assert snapshot.release_source == "configuration.json"
    assert snapshot.prompt_format == FORMATS["multialpaca"]
    assert snapshot.generation["top_p"] == 0.8


def test_format_by_configuration(folder: Path) -> None:
    update_json(folder / "configuration.json", prompt_format="assistant")
    snapshot = open_snapshot(folder)
    assert snapshot.release is None
    assert snapshot.prompt_format == FORMATS["assistant"]


def test_arguments_win(tmp_path: Path, random_snapshot: Path) -> None:
    folder = shutil.copytree(random_snapshot, tmp_path / "nlp_polylm_13b_text_generation")
    update_json(folder / "configuration.json", release="ecomm-13b", prompt_format="ecomm")
    snapshot = open_snapshot(folder, prompt_format="multialpaca", release="assistant-13b")
    assert snapshot.release == RELEASES["assistant-13b"]
    assert snapshot.release_source == "what was asked for"
    assert snapshot.prompt_format == FORMATS["multialpaca"]


def test_missing_configuration_is_no_problem(folder: Path) -> None:
    (folder / "configuration.json").unlink()
    assert open_snapshot(folder).release is None


@pytest.mark.parametrize("name", ["release", "prompt_format"])
@pytest.mark.parametrize("value", ["gpt-4", "", 5])
def test_unknown_argument(random_snapshot: Path, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name}={value!r} is unknown: choose one of "):
        open_snapshot(random_snapshot, **{name: value})


def test_own_defaults_win_over_the_release(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"num_beams": 2, "top_k": None, "eos_token_id": [2, 5]})
    generation = open_snapshot(folder, release="assistant-13b").generation
    assert generation == {**RELEASES["assistant-13b"].generation, "num_beams": 2, "eos_token_id": [2, 5]}


def test_names_that_are_no_options_are_dropped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = {"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "5.23.0", "use_cache": True, "top_p": 0.9}
    write_json(folder / "generation_config.json", written)
    assert open_snapshot(folder).generation == {"eos_token_id": 2, "top_p": 0.9}
    assert caplog.records == []
    update_json(folder / "generation_config.json", guidance_scale=3.0)
    assert open_snapshot(folder).generation == {"eos_token_id": 2, "top_p": 0.9}
    assert "guidance_scale are not used" in caplog.text


@pytest.mark.parametrize(
    ("written", "end"),
    [
        ({}, 2),
        ({"eos_token_id": 7}, 7),
        ({"eos_token_id": [7, 2]}, [7, 2]),
        ({"eos_token_id": 511}, 2),
        ({"eos_token_id": [2, 511]}, 2),
        ({"eos_token_id": 512}, 2),
        ({"eos_token_id": -1}, 2),
        ({"eos_token_id": []}, 2),
        ({"eos_token_id": "2"}, 2),
        ({"eos_token_id": True}, 2),
        ({"eos_token_id": None}, 2),
        ({"_from_model_config": True, "eos_token_id": 7, "pad_token_id": 7}, 2),
    ],
)
def test_end_token(folder: Path, written: dict[str, Any], end: Any) -> None:
    write_json(folder / "generation_config.json", written)
    assert open_snapshot(folder).generation == {"eos_token_id": end}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"max_new_tokens": 64.0}, "max_new_tokens=64.0 must be a whole number"),
        ({"pad_token_id": -1}, "pad_token_id=-1 must be at least 0"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0 must be greater than 0.0"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ({"top_p": "0.9"}, "top_p='0.9' must be a finite number"),
        ({"bad_words_ids": [[]]}, "bad_words_ids=[[]] must be a list of non-empty lists"),
        ({"early_stopping": "perhaps"}, "early_stopping='perhaps' is not one of"),
        ({"stop_strings": 7}, "stop_strings=7 must be a non-empty text"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
    ],
)
def test_wrong_values_name_generation_config(folder: Path, written: dict[str, Any], message: str) -> None:
    write_json(folder / "generation_config.json", written)
    with pytest.raises(SnapshotError) as error:
        open_snapshot(folder)
    (line,) = str(error.value).splitlines()[1:]
    assert line.startswith(f"generation_config.json: {message}")


def test_all_wrong_values_of_generation_config(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"max_new_tokens": 0, "top_k": 1.5, "temperature": 10**400})
    with pytest.raises(SnapshotError) as error:
        open_snapshot(folder)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3 and all(line.startswith("generation_config.json") for line in lines)


def test_end_token_of_what_transformers_derives(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import GenerationConfig, GPT2Config

    derived = GenerationConfig.from_model_config(GPT2Config.from_pretrained(folder))
    derived.save_pretrained(folder)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 511
    with caplog.at_level(logging.WARNING, "modelscope_polylm"):
        assert open_snapshot(folder).generation["eos_token_id"] == 2
    assert caplog.records == []


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"nothing does not exist\. A PolyLM snapshot is .*modelscope download"):
        open_snapshot(tmp_path / "nothing")


def test_file_instead_of_a_folder(random_snapshot: Path) -> None:
    with pytest.raises(SnapshotError, match=r"config\.json is a file, not a folder\. A PolyLM snapshot is"):
        open_snapshot(random_snapshot / "config.json")


def test_folder_that_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"has no config\.json, .* A PolyLM snapshot is .*modelscope download"):
        open_snapshot(tmp_path)


def test_vocabulary_smaller_than_the_tokenizer(tmp_path: Path) -> None:
    build_snapshot(tmp_path, vocab_size=500)
    with pytest.raises(SnapshotError, match=r"vocab_size 500 is smaller than the 512 pieces of tokenizer\.model"):
        open_snapshot(tmp_path)


def test_vocabulary_larger_than_the_tokenizer(tmp_path: Path) -> None:
    assert open_snapshot(build_snapshot(tmp_path, vocab_size=600)).config.vocab_size == 600


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "config.json holds a list"),
        ("config.json", '{"model_type": "llama"}', "model_type is 'llama'"),
        ("configuration.json", "not json", "configuration.json cannot be read"),
        ("configuration.json", '{"release": "7b"}', "release '7b' is unknown; known are tiny, 1.7b"),
        ("configuration.json", '{"prompt_format": ["base"]}', "prompt_format ['base'] is unknown; known are base"),
        ("generation_config.json", "[1]", "generation_config.json holds a list"),
        ("generation_config.json", "\x00", "generation_config.json cannot be read"),
        ("tokenizer.model", "no tokenizer", "tokenizer.model"),
        ("pytorch_model.bin", "", "pytorch_model.bin is empty"),
    ],
)
def test_broken_file(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(SnapshotError) as error:
        open_snapshot(folder)
    assert str(error.value).startswith(f"The snapshot in {folder} cannot be used:\n")
    assert message in str(error.value)


def test_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    with pytest.raises(SnapshotError, match=r"tokenizer\.model"):
        open_snapshot(folder)


def test_all_problems_at_once(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, "bin-sharded")
    update_json(folder / "config.json", n_head=3, activation_function="relu")
    (folder / "tokenizer.model").write_bytes(b"")
    (folder / "pytorch_model-00003-of-00003.bin").unlink()
    (folder / "configuration.json").write_text("")
    with pytest.raises(SnapshotError) as error:
        open_snapshot(folder)
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    for part in ("n_head 3", "relu", "tokenizer.model", "00003-of-00003.bin is missing", "configuration.json"):
        assert any(part in line for line in lines), part
