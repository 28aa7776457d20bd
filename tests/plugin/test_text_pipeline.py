"""pipeline(text-generation): every kind of input and output of a call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from datasets import Dataset
from modelscope.msdatasets import MsDataset
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm import PolyLMForTextGeneration, PolyLMPreprocessor, PolyLMTextGenerationPipeline
from modelscope_polylm.errors import DeviceError, InputError, OptionError
from tests.snapshots import random_model

TEXT = "Beijing is the capital of China."
CONVERSATION = {"messages": [{"role": "user", "content": TEXT}]}
GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 8}
PROMPTS = ["Paris", TEXT, "北京是", "a b c d e f g h i j", " "]


def decoded(pipe: PolyLMTextGenerationPipeline, ids: list[int]) -> str:
    return pipe.model.generator.snapshot.tokenizer.decode(ids, skip_special_tokens=True)


def test_the_published_snippet(random_snapshot: Path, tmp_path: Path) -> None:
    """The snippet of the model card, unchanged; only the folder is not downloaded."""
    model_dir = str(shutil.copytree(random_snapshot, tmp_path / "nlp_polylm_assistant_13b_text_generation"))
    input_text = "Beijing is the capital of China.\nTranslate this sentence from English to Chinese."
    input_text = "<|user|>\n" + f"{input_text}\n" + "<|assistant|>\n"

    kwargs = {"do_sample": False, "num_beams": 4, "max_new_tokens": 128, "early_stopping": True, "eos_token_id": 2}
    pipeline_ins = pipeline(Tasks.text_generation, model=model_dir)

    result = pipeline_ins(input_text, **kwargs)
    assert result["text"].startswith(input_text)
    assert set(result) == {"text"}
    ids = torch.tensor([pipeline_ins.model.generator.snapshot.tokenizer.encode(input_text)])
    new = pipeline_ins.model.generate(ids, **kwargs)[0].tolist()
    assert result["text"] == decoded(pipeline_ins, new)


def test_text_is_that_of_transformers(pipe: PolyLMTextGenerationPipeline) -> None:
    ids = torch.tensor([pipe.model.generator.snapshot.tokenizer.encode(TEXT)])
    expected = random_model(seed=0).generate(
        ids, attention_mask=torch.ones_like(ids), **GREEDY, eos_token_id=2, pad_token_id=2
    )
    assert pipe(TEXT, **GREEDY) == {"text": decoded(pipe, expected[0].tolist())}


def test_without_the_prompt(pipe: PolyLMTextGenerationPipeline) -> None:
    answer = pipe(TEXT, return_full_text=False, **GREEDY)
    assert pipe(TEXT, return_full_text=True, **GREEDY) == pipe(TEXT, **GREEDY) == {"text": TEXT + answer["text"]}


def test_rows(pipe: PolyLMTextGenerationPipeline) -> None:
    assert pipe({"text": TEXT, "id": 1}, **GREEDY) == pipe(TEXT, **GREEDY)


def test_conversation(pipe: PolyLMTextGenerationPipeline) -> None:
    prompt = f"<|user|>\n{TEXT}\n<|assistant|>\n"
    answer = pipe(prompt, return_full_text=False, **GREEDY)["text"]
    expected = {"text": answer, "message": {"role": "assistant", "content": answer}}
    assert pipe(CONVERSATION, **GREEDY) == expected
    assert pipe(CONVERSATION["messages"], **GREEDY) == expected
    assert pipe(CONVERSATION, return_full_text=True, **GREEDY) == {**expected, "text": prompt + answer}


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5, 8])
@pytest.mark.parametrize("options", [GREEDY, {**GREEDY, "num_beams": 3}], ids=["greedy", "beams"])
def test_lists_give_what_their_items_give(
    pipe: PolyLMTextGenerationPipeline, batch_size: int | None, options: dict[str, Any]
) -> None:
    inputs = [*PROMPTS, CONVERSATION, {"text": "Rome"}]
    assert pipe(inputs, batch_size=batch_size, **options) == [pipe(item, **options) for item in inputs]


def test_empty_list(pipe: PolyLMTextGenerationPipeline) -> None:
    assert pipe([]) == pipe([], batch_size=4) == []


def test_a_batch_size_for_one_input(pipe: PolyLMTextGenerationPipeline) -> None:
    assert pipe(TEXT, batch_size=4, **GREEDY) == pipe(TEXT, **GREEDY)


COLLECTIONS = {
    "tuple": tuple,
    "generator": lambda texts: (text for text in texts),
    "array": numpy.array,
    "series": lambda texts: pandas.Series(texts, index=[7] * len(texts)),
    "column": lambda texts: Dataset.from_dict({"text": texts})["text"],
}


@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_are_lists(pipe: PolyLMTextGenerationPipeline, name: str) -> None:
    assert pipe(COLLECTIONS[name](PROMPTS), **GREEDY) == pipe(PROMPTS, **GREEDY)


def test_no_inputs_give_no_outputs(pipe: PolyLMTextGenerationPipeline) -> None:
    assert pipe([], **GREEDY) == [] and pipe((), **GREEDY) == []


def data_set(texts: list[str]) -> MsDataset:
    return MsDataset.to_ms_dataset(Dataset.from_list([{"text": text, "id": row} for row, text in enumerate(texts)]))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_data_set(pipe: PolyLMTextGenerationPipeline, batch_size: int | None) -> None:
    outputs = pipe(data_set(PROMPTS), batch_size=batch_size, **GREEDY)
    assert isinstance(outputs, Iterator)
    assert list(outputs) == [pipe(prompt, **GREEDY) for prompt in PROMPTS]


def test_a_bad_row_is_counted_in_the_data_set(pipe: PolyLMTextGenerationPipeline) -> None:
    outputs = pipe(data_set(["a", "b", ""]), batch_size=2, **GREEDY)
    assert [next(outputs)["text"][0], next(outputs)["text"][0]] == ["a", "b"]
    with pytest.raises(InputError, match=r"Input 2: .*empty"):
        next(outputs)


def test_several_answers(pipe: PolyLMTextGenerationPipeline) -> None:
    output = pipe(TEXT, **{**GREEDY, "num_beams": 4, "num_return_sequences": 3})
    assert output["texts"][0] == output["text"] == pipe(TEXT, **{**GREEDY, "num_beams": 4})["text"]
    assert len(set(output["texts"])) == len(output["scores"]) == 3
    assert output["scores"] == sorted(output["scores"], reverse=True)
    assert all(text.startswith(TEXT) for text in output["texts"])


def test_several_answers_of_a_conversation(pipe: PolyLMTextGenerationPipeline) -> None:
    output = pipe(CONVERSATION, **{**GREEDY, "num_beams": 2, "num_return_sequences": 2})
    assert output["texts"][0] == output["text"] == output["message"]["content"]


def test_sampled_answers(pipe: PolyLMTextGenerationPipeline) -> None:
    options = {"do_sample": True, "top_p": 0.9, "temperature": 1.5, "num_return_sequences": 3, "max_new_tokens": 8}
    output = pipe(TEXT, seed=3, **options)
    assert len(output["texts"]) == 3
    assert pipe(TEXT, seed=3, **options) == output


def test_scores_and_logprobs(pipe: PolyLMTextGenerationPipeline) -> None:
    output = pipe(TEXT, output_scores=True, output_logprobs=True, **GREEDY)
    assert set(output) == {"text", "scores", "logprobs"}
    assert output["scores"][0] == pytest.approx(sum(output["logprobs"][0]))


def test_defaults_are_those_of_the_release(random_snapshot: Path) -> None:
    pipe = PolyLMTextGenerationPipeline(random_snapshot, device="cpu", release="assistant-13b")
    published = {"num_beams": 4, "early_stopping": True, "do_sample": False}
    assert pipe(TEXT, max_new_tokens=6) == pipe(TEXT, max_new_tokens=6, **published)
    length = len(pipe.preprocess(TEXT, **pipe._sanitize_parameters()[0]).ids)
    assert pipe(TEXT, max_length=length + 6) == pipe(TEXT, max_new_tokens=6)
    assert pipe(TEXT, max_new_tokens=6, do_sample=True, seed=1) == pipe(
        TEXT, max_new_tokens=6, do_sample=True, num_beams=1, seed=1
    )


def test_own_preprocessor(model: PolyLMForTextGeneration, random_snapshot: Path) -> None:
    reader = PolyLMPreprocessor(str(random_snapshot), prompt_format="multialpaca")
    pipe = PolyLMTextGenerationPipeline(model, preprocessor=reader)
    assert pipe(CONVERSATION, return_full_text=True, **GREEDY)["text"].startswith(f"{TEXT}\n\n")


def test_constructors(random_snapshot: Path, model: PolyLMForTextGeneration) -> None:
    built = pipeline(
        Tasks.text_generation, model=str(random_snapshot), device="cpu", torch_dtype="bfloat16", backend="native"
    )
    assert built.model.dtype == torch.bfloat16
    assert pipeline(Tasks.text_generation, model=model).model is model
    assert pipeline(Tasks.text_generation, model=model, device="cpu").model is model


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"torch_dtype": "float32"}, OptionError, "torch_dtype: the model is loaded already"),
        ({"backend": "native"}, OptionError, "backend: the model is loaded already"),
        ({"device": "cuda:3"}, DeviceError, "does not exist"),
        ({"preprocessor": str.upper}, InputError, "preprocessor must be a PolyLMPreprocessor"),
    ],
)
def test_what_a_loaded_model_cannot_follow(
    model: PolyLMForTextGeneration, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        PolyLMTextGenerationPipeline(model, **options)


def test_a_model_of_another_kind() -> None:
    with pytest.raises(InputError, match="a PolyLM model, not Linear"):
        PolyLMTextGenerationPipeline(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
