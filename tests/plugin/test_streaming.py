"""stream_generate: each item is the whole output so far, as ModelScope has it."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise, zip_longest
from typing import Any

import pytest
import torch

from modelscope_polylm import PolyLMTextGenerationPipeline

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 12}
TEXT = "Beijing is the"
PROMPTS = ["Paris", "北京是中国的", "a b c"]


def test_one_input(pipe: PolyLMTextGenerationPipeline) -> None:
    stream = pipe.stream_generate(TEXT, **GREEDY)
    assert isinstance(stream, Generator)
    texts = [output["text"] for output in stream]
    assert texts[-1] == pipe(TEXT, **GREEDY)["text"]
    assert len(texts) > 3
    assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(texts))
    assert all(text.startswith(TEXT) for text in texts)


def test_no_half_characters(pipe: PolyLMTextGenerationPipeline) -> None:
    options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 60, "seed": 1, "return_full_text": False}
    texts = [output["text"] for output in pipe.stream_generate(TEXT, **options)]
    assert texts[-1] == pipe(TEXT, **options)["text"]
    assert all(texts[-1].startswith(text) for text in texts)


def test_the_answer_alone(pipe: PolyLMTextGenerationPipeline) -> None:
    outputs = list(pipe.stream_generate(TEXT, return_full_text=False, **GREEDY))
    assert TEXT + outputs[-1]["text"] == pipe(TEXT, **GREEDY)["text"]


def test_conversation(pipe: PolyLMTextGenerationPipeline) -> None:
    value = {"messages": [{"role": "user", "content": "Hi"}]}
    outputs = list(pipe.stream_generate(value, **GREEDY))
    assert outputs[-1] == pipe(value, **GREEDY)
    assert all(output["message"]["content"] == output["text"] for output in outputs)


def test_a_list_gives_a_generator_each(pipe: PolyLMTextGenerationPipeline) -> None:
    streams = pipe.stream_generate(PROMPTS, **GREEDY)
    assert isinstance(streams, list)
    assert [list(stream)[-1] for stream in streams] == pipe(PROMPTS, **GREEDY)


def test_streams_of_one_thread_may_alternate(pipe: PolyLMTextGenerationPipeline) -> None:
    first, second = pipe.stream_generate(PROMPTS[:2], **GREEDY)
    outputs: list[Any] = [None, None]
    for pair in zip_longest(first, second):
        outputs = [new or old for new, old in zip(pair, outputs, strict=True)]
    assert outputs == pipe(PROMPTS[:2], **GREEDY)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_batches_give_one_generator_of_lists(pipe: PolyLMTextGenerationPipeline, batch_size: int) -> None:
    stream = pipe.stream_generate(PROMPTS, batch_size=batch_size, **GREEDY)
    assert isinstance(stream, Generator)
    items = list(stream)
    assert items[-1] == pipe(PROMPTS, **GREEDY)
    assert all(len(item) == len(PROMPTS) for item in items)
    # prompts begin together as far as the batch size allows, so the last one is known from the start, or later
    assert [output is None for output in items[0]] == [False, True, True]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 3, "seed": 5, "temperature": 2.0},
    ],
)
def test_searches_with_nothing_final_before_the_end(
    pipe: PolyLMTextGenerationPipeline, options: dict[str, Any]
) -> None:
    expected = pipe(TEXT, max_new_tokens=6, **options)
    texts = [output["text"] for output in pipe.stream_generate(TEXT, max_new_tokens=6, **options)]
    assert set(texts) == {expected["text"]}
    assert list(pipe.stream_generate(TEXT, max_new_tokens=6, **options))[-1] == expected


def test_an_empty_answer_is_still_an_output(pipe: PolyLMTextGenerationPipeline) -> None:
    first = pipe.model.generate(torch.tensor([pipe.preprocess(TEXT, **sanitized(pipe)).ids]), **GREEDY)[0]
    end = int(first[len(pipe.preprocess(TEXT, **sanitized(pipe)).ids)])
    assert list(pipe.stream_generate(TEXT, **GREEDY, eos_token_id=end)) == [{"text": TEXT}]


def sanitized(pipe: PolyLMTextGenerationPipeline) -> dict[str, Any]:
    return pipe._sanitize_parameters(**GREEDY)[0]


def test_a_stream_may_be_left(pipe: PolyLMTextGenerationPipeline) -> None:
    expected = pipe(TEXT, **GREEDY)
    stream = pipe.stream_generate(TEXT, **GREEDY)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert pipe(TEXT, **GREEDY) == expected


def test_a_stream_leaves_the_gradient_mode_alone(pipe: PolyLMTextGenerationPipeline) -> None:
    stream = pipe.stream_generate(TEXT, **GREEDY)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()
