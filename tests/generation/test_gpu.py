"""On a CUDA device: fp32 ids equal transformers', captured steps serve other calls, bf16 logits are closer."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import END_TOKENS, PROMPTS, random_model
from tests.generation.test_parity import TABLE, options_of, reference

pytestmark = pytest.mark.gpu
WIDE = {"width": 5120, "heads": 40, "layers": 4, "vocabulary": 3000, "scale": 0.02}


@pytest.fixture(scope="module", params=["tiny", "wide"])
def pair(request):
    model = random_model() if request.param == "tiny" else random_model(**WIDE)
    engine = engine_of(model, "cuda")
    yield engine, model.cuda()
    del engine, model
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_ids_equal_transformers(pair, case):
    engine, model = pair
    options = options_of(case)
    with torch.device("cuda"):
        expected = [reference(model, prompt, options) for prompt in PROMPTS]
    together = generate(engine, PROMPTS, **options)
    again = generate(engine, PROMPTS, **options)
    assert [[answer.ids for answer in answers] for answers in together] == expected
    assert [[answer.ids for answer in answers] for answers in again] == expected


def test_other_lengths_and_values_are_not_captured_again(pair, monkeypatch):
    engine, _ = pair
    first = {"num_beams": 4, "max_new_tokens": 20, "eos_token_id": END_TOKENS[:1]}
    generate(engine, PROMPTS[:1], **first)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)
    for prompt, length in ((PROMPTS[3], 50), (PROMPTS[1], 7), (PROMPTS[0] * 10, 60)):
        generate(engine, [prompt], **{**first, "max_new_tokens": length, "length_penalty": 1.7})


def test_bf16_logits_are_twice_as_close_as_those_of_transformers():
    torch.manual_seed(0)
    model = random_model(width=5120, heads=40, layers=10, vocabulary=4000, positions=512, scale=0.02).cuda()
    # the same weights for all: only the rounding of what is computed differs
    model = model.bfloat16().float()
    ids = torch.randint(4, 4000, (1, 512), device="cuda")
    with torch.no_grad():
        exact = model(ids).logits[0]
        engine = engine_of(model, "cuda", torch.bfloat16)
        theirs = model.bfloat16()(ids).logits[0].float()
        hidden = engine.decoder.prefill(ids)[0]
        ours = torch.nn.functional.linear(hidden.float(), engine.decoder.embedding.float())
    error = {name: ((got - exact).norm() / exact.norm()).item() for name, got in (("ours", ours), ("theirs", theirs))}
    print(f"relative error of bf16 logits: {error}")
    assert error["ours"] <= 0.5 * error["theirs"]
