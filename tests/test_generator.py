"""Models answer on every device, without ModelScope; what they cannot do, they say."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.backends import placement
from modelscope_polylm.conversation import Conversation
from modelscope_polylm.errors import DeviceError, InputError, OptionError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.text.languages import translation_request

QUESTION = [{"role": "user", "content": "Rome"}]
SENTENCES = {"German": "Rom ist die Hauptstadt von Italien.", "Chinese": "罗马是意大利的首都。"}


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return TextGenerator.load(TINY_FOLDER, device="cpu")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("given", [{}, {"num_beams": 1}, {"num_beams": 1, "do_sample": True, "top_k": 1}], ids=str)
def test_answers(device: str, dtype: str | None, given: dict[str, Any]) -> None:
    generator = TextGenerator.load(TINY_FOLDER, device=device, dtype=dtype)
    options = generator.options(given)
    requests = [translation_request("Rome is the capital of Italy.", language) for language in SENTENCES]
    prompts = [generator.reader.read(request, options, chat=True) for request in requests]
    assert [reply.texts[0] for reply in generator.reply(prompts, options)] == list(SENTENCES.values())
    assert [generator.reply([prompt], options)[0].texts[0] for prompt in prompts] == list(SENTENCES.values())


@pytest.mark.parametrize("given", [{"release": "assistant-13b"}, {"prompt_format": "assistant"}], ids=str)
def test_messages_need_a_release(random_snapshot: Path, given: dict[str, str]) -> None:
    unknown = TextGenerator.load(random_snapshot, device="cpu")
    options = unknown.options({"max_new_tokens": 2, "num_beams": 1})
    assert unknown.reader.read("Rome", options).text == "Rome"
    for value, chat in ((QUESTION, False), ({"messages": QUESTION}, False), ("Rome", True)):
        with pytest.raises(InputError, match=r"pass release= or prompt_format= .*--release to the command"):
            unknown.reader.read(value, options, chat=chat)
    with pytest.raises(InputError, match="pass release= or prompt_format="):
        Conversation(unknown)
    known = TextGenerator.load(random_snapshot, device="cpu", **given)
    assert known.reader.read(QUESTION, options).text == "<|user|>\nRome\n<|assistant|>\n"


@pytest.mark.parametrize(
    "written", [{"do_sample": True, "num_beams": 4}, {"num_return_sequences": 3}], ids=lambda written: str(written)
)
def test_defaults_that_do_not_go_together_name_their_file(
    random_snapshot: Path, tmp_path: Path, written: dict[str, Any]
) -> None:
    folder = shutil.copytree(random_snapshot, tmp_path / "snapshot")
    (folder / "generation_config.json").write_text(json.dumps(written))
    generator = TextGenerator.load(folder, device="cpu")
    with pytest.raises(OptionError, match=r"snapshot/generation_config\.json: .*num_beams"):
        generator.options({"max_new_tokens": 2})
    with pytest.raises(OptionError, match=r"^top_p=7"):
        generator.options({"num_beams": 1, "num_return_sequences": 1, "top_p": 7.0})
    assert generator.options({"num_beams": 1, "num_return_sequences": 1}).num_beams == 1


def test_weights_larger_than_the_memory(random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000")
    monkeypatch.setattr(placement, "CGROUP_FILES", [str(limit)])
    for backend in ("native", "transformers"):
        with pytest.raises(DeviceError, match=r"The weights take 0\.0 GB in float32, but 0\.0 GB of memory are free"):
            TextGenerator.load(random_snapshot, device="cpu", backend=backend)
    limit.write_text("100000000000")
    assert TextGenerator.load(random_snapshot, device="cpu").snapshot.config.layers == 2


def test_log_likelihoods(device: str) -> None:
    tiny = TextGenerator.load(TINY_FOLDER, device=device, dtype="float32")
    context, right, wrong = (
        tiny.snapshot.tokenizer.encode(text)
        for text in (
            "<|user|>\nRome is the capital of Italy.\nTranslate this sentence from English to German.\n<|assistant|>\n",
            "Rom ist die Hauptstadt von Italien.",
            "Paris ist die Hauptstadt von Frankreich.",
        )
    )
    first, second = tiny.log_likelihood([context, context], [right, wrong], best=1)
    assert sum(first.logprobs) > -0.5 > -5 > sum(second.logprobs)
    assert [best[0][0] for best in first.best] == right
    assert len(second.logprobs) == len(wrong)
    assert tiny.log_likelihood([], []) == []
    assert tiny.log_likelihood([context], [[]])[0].logprobs == []
    with pytest.raises(InputError, match="cannot be scored"):
        tiny.log_likelihood([[]], [right])


def test_log_likelihoods_are_of_the_native_backend() -> None:
    other = TextGenerator.load(TINY_FOLDER, device="cpu", backend="transformers")
    with pytest.raises(OptionError, match="backend='transformers' does not score texts"):
        other.log_likelihood([[5]], [[6]])


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_loaded_model_is_not_copied(generator: TextGenerator, copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled: threads may share it"):
        copied(generator)


def test_sampling_options_without_sampling_give_one_warning(generator: TextGenerator) -> None:
    with pytest.warns(UserWarning, match=r"^temperature, top_k have no effect without do_sample=True\.$") as found:
        generator.options({"temperature": 5.0, "top_k": 3, "num_beams": 1})
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.options({"temperature": 5.0, "do_sample": True, "num_beams": 1})
        generator.options({"temperature": 1.0})
