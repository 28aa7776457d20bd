"""On a CUDA device: ids equal transformers', answers are bit-equal in any company, captured steps serve other calls."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.requests import Request, checked_requests
from modelscope_polylm.generation.runner import SHORT_PREFILLS
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.gpt2 import Decoder, prefill_whole
from modelscope_polylm.network.kernels.dispatch import settings
from tests.generation.models import TRANSPOSED, engine_of, generate
from tests.generation.random_gpt2 import END_TOKENS, PROMPTS, VOCABULARY, random_model
from tests.generation.test_parity import TABLE, options_of, reference
from tests.network.kernels.random_tensors import relative_error

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
    # run, run again with what the first run left in the cache, and captured
    for prompt in (PROMPTS[3], PROMPTS[1], PROMPTS[0] * 10) * 3:
        generate(engine, [prompt], **first)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)
    for prompt, length in ((PROMPTS[3], 50), (PROMPTS[1], 7), (PROMPTS[0] * 10, 60)):
        generate(engine, [prompt], **{**first, "max_new_tokens": length, "length_penalty": 1.7})


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_of_any_length_alone(beams):
    """The shortest and the longest prompts of every captured prefill, and those that have none."""
    model = random_model(positions=400)
    engine = engine_of(model, "cuda")
    options = options_of({"max_new_tokens": 12, "num_beams": beams, "beam_rules": "5"})
    edges = (length + more for length in SHORT_PREFILLS for more in (-1, 0, 1))
    for length in (300, *edges, 1, 2):
        prompt = torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        answers = generate(engine, [prompt], **options)[0]
        assert [answer.ids for answer in answers] == reference(model, prompt, options), f"{length} tokens"


COMPANY: list[dict] = [
    {},
    {"num_beams": 4, "early_stopping": True},
    {"do_sample": True, "seed": 3, "top_k": 20},
    {"repetition_penalty": 1.2},
    {"num_beams": 3, "no_repeat_ngram_size": 2},
    {"do_sample": True, "seed": 4, "num_return_sequences": 3},
    {"do_sample": True, "seed": 9, "top_k": 0, "top_p": 0.8},
    {"do_sample": True, "seed": 5, "top_k": 0, "typical_p": 0.7},
    {"num_beams": 6, "min_new_tokens": 3},
    {"do_sample": True, "seed": 8, "top_k": 0},
]


def company(decoder: Decoder, count: int) -> list[Request]:
    """Requests of all kinds, with prompts and answers of different lengths."""
    source = torch.Generator().manual_seed(5)
    options, prompts = [], []
    for index in range(count):
        length, limit = (int(torch.randint(1, 90, (), generator=source)) for _ in range(2))
        prompts.append(torch.randint(4, decoder.config.vocab_size, (length,), generator=source).tolist())
        case = {**COMPANY[index % len(COMPANY)], "max_new_tokens": limit, "eos_token_id": END_TOKENS[:1]}
        options.append(GenerationOptions.from_layers({**case, "output_logprobs": True}))
    return checked_requests(prompts, options, decoder.config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs Hopper or later"
)
def test_answers_are_bit_equal_in_any_company(dtype, monkeypatch):
    """Alone, in company, put back and recomputed, with and without prefix reuse: the same ids, scores and numbers."""
    monkeypatch.setattr(settings, "deterministic", True)
    model = random_model(**{**WIDE, "positions": 256})
    engine = engine_of(model, "cuda", dtype)
    requests = company(engine.decoder, 60)
    alone = [engine.submit([request], partial=False).completions()[0] for request in requests]
    assert engine.submit(requests, partial=False).completions() == alone
    assert engine.submit(requests[::-1], partial=True, at_once=7).completions()[::-1] == alone
    small = engine_of(model, "cuda", dtype, max_pages=80, reuse_prefixes=False)
    assert small.submit(requests, partial=False).completions() == alone
    assert small.status().put_backs > 0


NOT_REACHED = pytest.mark.xfail(raises=AssertionError, strict=True, reason="0.582 on an H100: benchmarks/RESULTS.md")


@pytest.mark.parametrize("layers", [pytest.param(10, marks=NOT_REACHED), 40])
def test_error_of_bf16_logits_beside_that_of_transformers(layers):
    """The 13B shape over 512 given positions, and its first 10 layers, where the residual stream rounds less often."""
    model = initial_model(layers)
    ids = torch.randint(4, model.config.vocab_size, (1, 512), device="cuda")
    with torch.no_grad():
        exact = logits_in_fp32(model, ids)
        error = {"theirs": relative_error(model(ids).logits[0], exact)}
        decoder = decoder_of(model)
        hidden = prefill_whole(decoder, ids[0].tolist())
        error["ours"] = relative_error(hidden.float() @ decoder.embedding.float().t(), exact)
    print(f"{layers} layers, relative error of bf16 logits: {error}, ratio {error['ours'] / error['theirs']:.3f}")
    assert error["ours"] <= 0.5 * error["theirs"]


def initial_model(layers: int) -> GPT2LMHeadModel:
    """GPT-2's own initial weights in the 13B shape, bf16; a small vocabulary leaves room for the logits in fp32."""
    config = GPT2Config(
        vocab_size=8000, n_embd=5120, n_head=40, n_layer=layers, n_positions=512, activation_function="gelu_fast"
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        return GPT2LMHeadModel._from_config(config, dtype=torch.bfloat16).eval()


def logits_in_fp32(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """The same weights, computed in fp32 one layer after the other."""
    # ids: [1, length] -> [length, vocabulary]
    network = model.transformer
    hidden = network.wte(ids).float() + network.wpe.weight[: ids.shape[1]].float()
    for block in network.h:
        output = copy.deepcopy(block).float()(hidden)
        hidden = output[0] if isinstance(output, tuple) else output
    return copy.deepcopy(network.ln_f).float()(hidden)[0] @ network.wte.weight.float().t()


def decoder_of(model: GPT2LMHeadModel) -> Decoder:
    """Our decoder, which takes the model's weights over one by one."""
    weights = {}
    for name, parameter in model.transformer.named_parameters():
        weights[name] = parameter.data.t().contiguous() if name.endswith(TRANSPOSED) else parameter.data
        parameter.data = torch.empty(0)
    return Decoder(PolyLMConfig.from_dict(model.config.to_dict()), weights)
