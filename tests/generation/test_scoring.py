"""Log-probabilities of given tokens equal those of transformers' GPT-2, alone and among running requests, in fp32."""

from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import GPT2LMHeadModel

from modelscope_polylm.errors import DeviceError, InputError, SnapshotError
from modelscope_polylm.generation.engine import Engine
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import TokenScores
from modelscope_polylm.generation.requests import checked_requests, scoring_requests
from modelscope_polylm.generation.runner import AsyncReadback
from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import PROMPTS, VOCABULARY, random_model

CONTEXT = 96


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return random_model(positions=CONTEXT)


@pytest.fixture(scope="module")
def engine(model: GPT2LMHeadModel) -> Engine:
    return engine_of(model)


def texts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    choice = random.Random(seed)
    return [[choice.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def score(engine: Engine, texts: list[list[int]], starts: list[int], best: int = 0) -> list[TokenScores]:
    requests = scoring_requests(texts, starts, best, engine.decoder.config, engine.vocab_size)
    found = [answers[0].scores for answers in engine.submit(requests, partial=False).completions()]
    assert None not in found
    return found  # type: ignore[return-value]


def expected(model: GPT2LMHeadModel, text: list[int], start: int) -> torch.Tensor:
    """Log-probabilities [tokens from start on, vocabulary] of transformers."""
    with torch.no_grad():
        return model(torch.tensor([text])).logits[0, start - 1 : -1].float().log_softmax(-1)


def check(model: GPT2LMHeadModel, text: list[int], start: int, scores: TokenScores, best: int = 0) -> None:
    wanted = expected(model, text, start)
    tokens = torch.tensor(text[start:])
    assert scores.logprobs == pytest.approx(wanted.gather(1, tokens[:, None])[:, 0].tolist(), abs=1e-4)
    assert len(scores.best) == len(text) - start
    values, ids = wanted.topk(best)
    for position, found in enumerate(scores.best):
        assert [token for token, _ in found] == ids[position].tolist()
        assert [value for _, value in found] == pytest.approx(values[position].tolist(), abs=1e-4)


@pytest.mark.parametrize("best", [0, 1, 5])
def test_ragged_texts_from_any_position_on(model: GPT2LMHeadModel, engine: Engine, best: int) -> None:
    texts = texts_of([2, 3, 16, 17, 33, 64, CONTEXT - 1, CONTEXT])
    starts = [1, 2, 1, 16, 17, 5, 48, CONTEXT - 1]
    for text, start, scores in zip(texts, starts, score(engine, texts, starts, best), strict=True):
        check(model, text, start, scores, best)


def test_texts_that_begin_alike_share_their_begin(model: GPT2LMHeadModel) -> None:
    engine = engine_of(model)
    (context,) = texts_of([40], seed=3)
    texts = [[*context, *rest] for rest in texts_of([3, 1, 20, 3], seed=4)]
    starts = [40] * 4
    together = score(engine, texts, starts)
    assert engine.status().reused_tokens == 3 * 39  # all but the one whose result scores the first
    later = score(engine, texts, starts)
    assert engine.status().reused_tokens == 6 * 39 + 32  # a page that was not full is lost
    for text, one, other in zip(texts, together, later, strict=True):
        check(model, text, 40, one)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    # all of it again, from its second token on: nothing may come from the cache that has no results
    check(model, texts[2], 1, score(engine, [texts[2]], [1])[0])


def test_among_requests_that_generate(model: GPT2LMHeadModel, engine: Engine) -> None:
    alone = generate(engine, PROMPTS, max_new_tokens=30)
    options = GenerationOptions.from_layers({"max_new_tokens": 30})
    writing = checked_requests(PROMPTS, options, engine.decoder.config)
    texts = [*texts_of([20, 50]), [*PROMPTS[3], 5, 6, 7]]
    starts = [4, 17, len(PROMPTS[3])]
    scoring = scoring_requests(texts, starts, 2, engine.decoder.config, engine.vocab_size)
    mixed = [request for pair in zip(writing, [*scoring, *scoring], strict=True) for request in pair]
    found = engine.submit(mixed, partial=False).completions()
    assert [answers[0].ids for answers in found[::2]] == [answers[0].ids for answers in alone]
    for index, answers in enumerate(found[1::2]):
        assert answers[0].scores is not None and answers[0].ids == []
        check(model, texts[index % 3], starts[index % 3], answers[0].scores, 2)


def test_with_a_cache_that_is_too_small_for_all(model: GPT2LMHeadModel) -> None:
    engine = engine_of(model, max_pages=8)
    texts, starts = texts_of([60, 90, 30, 60, 96, 10], seed=8), [10] * 5 + [1]
    for text, start, scores in zip(texts, starts, score(engine, texts, starts), strict=True):
        check(model, text, start, scores)
    assert engine.status().used_cache_tokens == 0


def test_nothing_to_score(engine: Engine) -> None:
    for scores in score(engine, [[5], [5, 6], list(range(CONTEXT))], [1, 2, CONTEXT], best=2):
        assert (scores.logprobs, scores.best) == ([], [])


def test_ids_beyond_the_tokenizer_have_no_probability(model: GPT2LMHeadModel) -> None:
    engine = engine_of(model, tokenizer_size=200)
    (scores,) = score(engine, [[5, 6, 7]], [1], best=3)
    wanted = expected(model, [5, 6, 7], 1)[:, :200].log_softmax(-1)
    assert scores.logprobs == pytest.approx([wanted[0, 6].item(), wanted[1, 7].item()], abs=1e-4)
    assert all(token < 200 for position in scores.best for token, _ in position)
    with pytest.raises(InputError, match=r"Text 0 has token ids outside 0\.\.199"):
        score(engine, [[5, 200]], [1])


@pytest.mark.parametrize(
    ("text", "start", "said"),
    [
        ([5, 6], 0, "so they cannot be scored from 0 on: the first one has nothing before it"),
        ([5, 6], 3, "so they cannot be scored from 3 on"),
        ([], 1, "has 0 tokens"),
        ([1] * (CONTEXT + 1), 1, f"has {CONTEXT + 1} tokens, but the context holds {CONTEXT}"),
        ([5, -1], 1, "token ids outside"),
    ],
)
def test_what_cannot_be_scored(engine: Engine, text: list[int], start: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        score(engine, [text], [start])


def test_results_that_are_not_finite_are_an_error() -> None:
    broken = random_model()
    broken.transformer.ln_f.bias.data[3] = math.inf
    with pytest.raises(SnapshotError, match="not finite"):
        score(engine_of(broken), [[5, 6, 7]], [1])


def test_an_error_while_scores_are_read_fails_them_and_nothing_else(
    model: GPT2LMHeadModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(readback: AsyncReadback) -> None:
        monkeypatch.undo()
        raise RuntimeError("broken")

    monkeypatch.setattr(AsyncReadback, "wait", broken)
    with pytest.raises(DeviceError, match="broken"):
        score(engine, texts_of([20]), [4])
    (text,) = texts_of([20])
    check(model, text, 4, score(engine, [text], [4])[0])
