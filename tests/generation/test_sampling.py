"""Sampling draws from the distribution that transformers' warpers leave."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.sampling import Sampler, gumbel_noise, sampling_width
from modelscope_polylm.generation.state import BatchState, NewRow
from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import PROMPTS, random_model

CPU = torch.device("cpu")
CASES = [
    {"top_k": 0},
    {"temperature": 0.5, "top_k": 0},
    {"top_k": 1},
    {"top_k": 5, "temperature": 1.7},
    {"top_k": 64},
    {"top_k": 100},
    {"top_k": 0, "top_p": 0.8, "temperature": 0.7},
    {"top_p": 0.9, "temperature": 1.0},
    {"top_p": 0.0},
    {"top_k": 0, "top_p": 0.3},
    {"min_p": 0.2},
    {"top_k": 0, "min_p": 0.05, "temperature": 2.0},
    {"top_k": 0, "typical_p": 0.5},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9, "temperature": 1.3},
]


def sampler_of(options: GenerationOptions, vocabulary: int, rows: int) -> tuple[Sampler, BatchState]:
    """A sampler, and rows with the options' values and seeds 0, 1, 2, ..."""
    state = BatchState(rows, 4, CPU)
    new = [NewRow([1], 1, 3, 0, options, seed) for seed in range(rows)]
    state.begin(range(rows), new, [[]] * rows)
    return Sampler(sampling_width(options, vocabulary), options.typical_p < 1), state


def probabilities(sampler: Sampler, state: BatchState, logits: torch.Tensor) -> torch.Tensor:
    scores, ids = sampler.candidates(logits, state, torch.arange(len(logits)))
    shares = scores.softmax(-1)
    return shares if ids is None else torch.zeros_like(logits).scatter(1, ids, shares)


def warped(options: GenerationOptions, logits: torch.Tensor) -> torch.Tensor:
    warpers = [TemperatureLogitsWarper(options.temperature)]
    warpers += [TopKLogitsWarper(options.top_k)] if options.top_k else []
    warpers += [TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    warpers += [MinPLogitsWarper(options.min_p)] if options.min_p is not None else []
    warpers += [TypicalLogitsWarper(options.typical_p)] if options.typical_p < 1 else []
    return LogitsProcessorList(warpers)(None, logits.clone()).softmax(-1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_distribution_equals_that_of_transformers(case):
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1)) * 3
    options = GenerationOptions.from_layers({"do_sample": True, **case})
    sampler, state = sampler_of(options, 300, len(logits))
    torch.testing.assert_close(probabilities(sampler, state, logits), warped(options, logits), atol=1e-5, rtol=1e-4)


def test_rows_of_one_sampler_keep_their_own_values():
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)) * 3
    cases = [{"top_k": 5, "temperature": 1.7}, {"top_k": 40, "top_p": 0.7, "min_p": 0.02}]
    options = [GenerationOptions.from_layers({"do_sample": True, **case}) for case in cases]
    state = BatchState(2, 4, CPU)
    state.begin([0, 1], [NewRow([1], 1, 3, 0, each) for each in options], [[], []])
    expected = torch.cat([warped(each, logits[row : row + 1]) for row, each in enumerate(options)])
    torch.testing.assert_close(probabilities(Sampler(64, False), state, logits), expected, atol=1e-5, rtol=1e-4)


def test_draws_follow_the_distribution():
    options = GenerationOptions.from_layers({"do_sample": True, "top_k": 8, "top_p": 0.9, "seed": 5})
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(2)) * 2
    sampler, state = sampler_of(options, 50, 20_000)
    draws = sampler.draw(logits.expand(20_000, -1), state, torch.arange(20_000))
    expected = probabilities(sampler, state, logits)[0] * len(draws)
    counts = torch.bincount(draws, minlength=50).float()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    # 99.99 % of runs with 7 degrees of freedom or fewer stay below
    assert chi_square < 30


def test_defaults_are_those_of_transformers():
    options, config = GenerationOptions(), GenerationConfig(do_sample=True)
    assert options.top_k == 50
    for name in ("temperature", "top_p", "typical_p", "repetition_penalty"):
        assert getattr(options, name) == (getattr(config, name, None) or 1.0)


def test_a_seed_repeats_and_changes_answers():
    engine = engine_of(random_model())

    def ids(seed: int) -> list[list[int]]:
        options = {"do_sample": True, "seed": seed, "max_new_tokens": 12, "num_return_sequences": 3}
        return [answer.ids for answer in generate(engine, PROMPTS[:1], **options)[0]]

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)
    assert len({tuple(answer) for answer in ids(3)}) == 3


def test_without_a_seed_torchs_own_decides():
    engine = engine_of(random_model())

    def ids() -> list[int]:
        return generate(engine, PROMPTS[:1], do_sample=True, max_new_tokens=12)[0][0].ids

    torch.manual_seed(5)
    first = [ids(), ids()]
    torch.manual_seed(5)
    assert [ids(), ids()] == first and first[0] != first[1]


def test_random_numbers_are_uniform_and_differ_everywhere():
    seeds, ids = torch.arange(50)[:, None], torch.arange(2000)[None]
    noise = gumbel_noise(seeds, torch.full_like(seeds, 7), ids)
    uniform = (-(-noise).exp()).exp()
    assert uniform.unique().numel() == uniform.numel()
    counts = torch.histc(uniform.float(), 100, 0, 1)
    # 99.99 % of runs with 99 degrees of freedom stay below
    assert ((counts - 1000) ** 2 / 1000).sum() < 160
    shifted = gumbel_noise(seeds, torch.full_like(seeds, 8), ids)
    for other in (shifted.flatten(), noise.roll(1, 0).flatten(), noise.roll(1, 1).flatten()):
        assert torch.corrcoef(torch.stack((noise.flatten(), other)))[0, 1].abs() < 0.02


def test_ids_beyond_the_tokenizer_are_never_drawn():
    engine = engine_of(random_model(), tokenizer_size=40)
    options = {"do_sample": True, "temperature": 50.0, "top_k": 0, "seed": 0, "max_new_tokens": 60}
    sampled = generate(engine, [PROMPTS[0]] * 4, **options)
    beams = generate(engine, [PROMPTS[0]], num_beams=4, num_return_sequences=4, max_new_tokens=20)
    penalised = generate(engine, [PROMPTS[0]], repetition_penalty=1.5, max_new_tokens=40)
    assert max(max(answer.ids) for answers in sampled + beams + penalised for answer in answers) < 40
