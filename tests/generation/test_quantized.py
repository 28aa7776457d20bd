"""Ids of the quantised engine equal those of transformers with the weights that quantization leaves, in fp32."""

from __future__ import annotations

import copy

import pytest
import torch

from modelscope_polylm.generation.engine import Engine
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.quantization import QUANTIZATIONS, dequantize, quantize
from modelscope_polylm.network.weights import format_of
from tests.generation.models import IdBounds, engine_of, generate
from tests.generation.random_gpt2 import PROMPTS, random_model
from tests.generation.test_parity import TABLE, options_of, reference


def quantised_pair(quantization):
    """The engine, and transformers' model with the weights rounded."""
    model = copy.deepcopy(random_model())
    config, weights = PolyLMConfig.from_dict(model.config.to_dict()), {}
    for name, tensor in model.transformer.state_dict().items():
        chosen = format_of(name, quantization)
        is_conv1d = chosen is not None and name != "wte.weight"
        weights[name] = quantize(tensor.t() if is_conv1d else tensor, chosen) if chosen else tensor.clone()
        if chosen:
            rounded = dequantize(weights[name])
            tensor.copy_(rounded.t() if is_conv1d else rounded)
    model.tie_weights()
    return Engine(Decoder(config, weights), IdBounds(model.config.vocab_size)), model


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def pair(request):
    return quantised_pair(request.param)


CASES = [case if number % 8 == 2 else pytest.param(case, marks=pytest.mark.slow) for number, case in enumerate(TABLE)]
"""Every eighth of the table in the default run."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ids_equal_transformers_with_rounded_weights(pair, case):
    engine, model = pair
    options = options_of(case)
    expected = [reference(model, prompt, options) for prompt in PROMPTS]
    found = generate(engine, PROMPTS, **options)
    assert [[answer.ids for answer in answers] for answers in found] == expected


def test_an_int8_cache_changes_log_probabilities_little():
    model = random_model(scale=0.05)
    plain, rounded = engine_of(model), engine_of(model, cache_dtype=torch.int8)
    options = options_of({"max_new_tokens": 1})
    # two prompts that begin alike, so that the second one reads the cache of the first
    for prompt in (list(range(30, 70)), [*range(30, 70), 5, 6]):
        own, expected = (generate(engine, [prompt], **options)[0][0] for engine in (rounded, plain))
        assert own.ids == expected.ids
        assert own.logprobs == pytest.approx(expected.logprobs, abs=0.05)
    assert rounded.status().cache_bytes == pytest.approx(plain.status().cache_bytes * (128 + 2) / (128 * 4))
