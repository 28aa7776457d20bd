"""Threads that share a pipeline get the answers that they would get alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from modelscope_polylm import PolyLMForTextGeneration, PolyLMTextGenerationPipeline

PROMPTS = ["Paris", "北京是中国的首都", "Beijing is the capital of China.", "a"]
OPTIONS = [
    {"do_sample": False, "num_beams": 1},
    {"do_sample": False, "num_beams": 3},
    {"do_sample": True, "seed": 4, "temperature": 1.5},
    {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("threads", [2, 8])
def test_calls(model: PolyLMForTextGeneration, threads: int) -> None:
    pipe = PolyLMTextGenerationPipeline(model)
    calls = [(prompt, {**options, "max_new_tokens": 12}) for prompt in PROMPTS for options in OPTIONS]
    with ThreadPoolExecutor(threads) as pool:  # the first calls come together too
        together = list(pool.map(lambda call: pipe(call[0], **call[1]), calls))
    assert together == [pipe(prompt, **options) for prompt, options in calls]


def test_streams_and_calls(pipe: PolyLMTextGenerationPipeline) -> None:
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 16}
    expected = pipe(PROMPTS, **options)
    with ThreadPoolExecutor(4) as pool:
        streamed = pool.map(lambda prompt: list(pipe.stream_generate(prompt, **options))[-1], PROMPTS)
        called = pool.submit(pipe, PROMPTS, batch_size=4, **options)
        assert list(streamed) == expected
        assert called.result() == expected
