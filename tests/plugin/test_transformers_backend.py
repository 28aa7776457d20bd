"""Pipelines on the transformers backend: its options pass through, and a dispatched model stays where it is."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm import PolyLMTextGenerationPipeline
from modelscope_polylm.errors import OptionError

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 6}
PROMPTS = ["Paris", "Beijing is the capital"]


@pytest.fixture(scope="module")
def transformers_pipe(random_snapshot: Path) -> PolyLMTextGenerationPipeline:
    return PolyLMTextGenerationPipeline(random_snapshot, device="cpu", backend="transformers")


def test_same_texts(transformers_pipe: PolyLMTextGenerationPipeline, pipe: PolyLMTextGenerationPipeline) -> None:
    assert transformers_pipe(PROMPTS, batch_size=2, **GREEDY) == pipe(PROMPTS, **GREEDY)


@pytest.mark.parametrize("second_layer", ["cpu", "disk"])
def test_dispatched_models_stay_where_they_are(
    random_snapshot: Path, pipe: PolyLMTextGenerationPipeline, tmp_path: Path, second_layer: str
) -> None:
    on_cpu = ("transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.ln_f", "lm_head")
    device_map = {**dict.fromkeys(on_cpu, "cpu"), "transformer.h.1": second_layer}
    options = {"backend": "transformers", "device_map": device_map, "offload_folder": str(tmp_path)}
    dispatched = pipeline(Tasks.text_generation, model=str(random_snapshot), **options)
    network = dispatched.model.generator.backend.model
    places = [parameter.device.type for parameter in network.parameters()]
    assert ("meta" in places) == (second_layer == "disk")
    for _ in range(2):
        assert dispatched("Paris", **GREEDY) == pipe("Paris", **GREEDY)
    assert [parameter.device.type for parameter in network.parameters()] == places


def test_options_that_only_transformers_has(
    transformers_pipe: PolyLMTextGenerationPipeline, pipe: PolyLMTextGenerationPipeline
) -> None:
    blocked = transformers_pipe("Paris", suppress_tokens=list(range(300, 400)), **GREEDY)
    assert blocked["text"].startswith("Paris")
    with pytest.raises(OptionError, match="backend='transformers'"):
        pipe("Paris", suppress_tokens=[300], **GREEDY)


def test_streams(transformers_pipe: PolyLMTextGenerationPipeline, pipe: PolyLMTextGenerationPipeline) -> None:
    outputs = list(transformers_pipe.stream_generate("Paris", **GREEDY))
    assert outputs[-1] == pipe("Paris", **GREEDY)
    assert len(outputs) > 1


@pytest.mark.timeout(60)
def test_streams_of_one_thread_may_alternate(transformers_pipe: PolyLMTextGenerationPipeline) -> None:
    first, second = transformers_pipe.stream_generate(PROMPTS, **GREEDY)
    outputs: list[Any] = [None, None]
    for pair in zip_longest(first, second):
        outputs = [new or old for new, old in zip(pair, outputs, strict=True)]
    assert outputs == transformers_pipe(PROMPTS, **GREEDY)


def test_options_of_the_backend_are_refused_elsewhere(random_snapshot: Path) -> None:
    with pytest.raises(OptionError, match="device_map"):
        PolyLMTextGenerationPipeline(random_snapshot, device="cpu", device_map="auto")
