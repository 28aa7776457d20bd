"""The engine's loop: streaming, log-probabilities, stop strings, threads, and prompts that cannot be run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generation import runner as session
from modelscope_polylm.generation.engine import Engine, check_native
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.requests import checked_requests
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import PROMPTS, random_model
from tests.snapshots import tokenizer_bytes


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def engine(model):
    return engine_of(model)


def updates_of(engine: Engine, prompts: list[list[int]], **options) -> tuple[list[list[list[int]]], list]:
    stream, updates = engine.stream(prompts, GenerationOptions.from_layers(options)), []
    while True:
        try:
            updates.append(next(stream))
        except StopIteration as finished:
            return updates, finished.value


def test_a_stream_yields_every_token_as_it_comes(engine):
    updates, answers = updates_of(engine, PROMPTS, max_new_tokens=9, eos_token_id=77)
    for index, answer in enumerate(answers):
        assert [token for update in updates for token in update[index]] == answer[0].ids
    assert max(len(tokens) for update in updates for tokens in update) == 1


def test_beam_search_yields_its_best_answer_once(engine):
    updates, answers = updates_of(engine, PROMPTS[:2], num_beams=3, num_return_sequences=2, max_new_tokens=6)
    assert updates[-1] == [best[0].ids for best in answers]
    # before that one empty update for each step, between which a caller can close the stream
    assert updates[:-1] == [[[], []]] * (len(updates) - 1) and len(updates) > 2


@pytest.mark.parametrize(
    "option",
    [{"eos_token_id": 300}, {"eos_token_id": [5, 1 << 40]}, {"pad_token_id": 300}, {"bad_words_ids": [[1, 300]]}],
)
def test_token_ids_that_the_network_does_not_have(engine, option):
    with pytest.raises(OptionError, match=f"{next(iter(option))} holds .* give 0..299"):
        generate(engine, [PROMPTS[0]], max_new_tokens=2, **option)


def test_a_stream_that_is_dropped_leaves_the_engine_usable(engine):
    expected = generate(engine, [PROMPTS[1]], max_new_tokens=8)
    stream = engine.stream([PROMPTS[0]], GenerationOptions.from_layers({"max_new_tokens": 20}))
    next(stream)
    assert generate(engine, [PROMPTS[1]], max_new_tokens=8) == expected
    stream.close()


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.3}, {"num_beams": 3}, {"num_beams": 3, "min_length": 9}]
)
def test_log_probabilities_are_the_models_own(engine, model, options):
    answer = generate(engine, [PROMPTS[1]], max_new_tokens=7, output_logprobs=True, eos_token_id=299, **options)[0][0]
    with torch.no_grad():
        logprobs = model(torch.tensor([PROMPTS[1] + answer.ids])).logits[0].log_softmax(-1)
    start = len(PROMPTS[1]) - 1
    expected = [logprobs[start + index, token].item() for index, token in enumerate(answer.ids)]
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)


def test_samples_are_sorted_by_their_log_probability(engine):
    answers = generate(engine, [PROMPTS[0]], do_sample=True, num_return_sequences=5, max_new_tokens=5, seed=1)[0]
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)


def test_long_batches_are_prefilled_in_chunks(engine, monkeypatch):
    whole = generate(engine, PROMPTS, max_new_tokens=6)
    monkeypatch.setattr(session, "PREFILL_TOKENS", 8)
    chunked = generate(engine, PROMPTS, max_new_tokens=6)
    assert (
        len(
            list(
                session.prefill_chunks(
                    checked_requests(PROMPTS, GenerationOptions(max_new_tokens=6), engine.decoder.config)
                )
            )
        )
        > 2
    )
    assert [answers[0].ids for answers in chunked] == [answers[0].ids for answers in whole]


def test_threads_get_what_they_would_get_alone(engine):
    expected = [generate(engine, [prompt], num_beams=3, max_new_tokens=12) for prompt in PROMPTS]
    results: dict[int, list] = {}

    def work(index: int) -> None:
        results[index] = generate(engine, [PROMPTS[index]], num_beams=3, max_new_tokens=12)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[index] for index in range(len(PROMPTS))] == expected


def test_an_answer_ends_behind_a_stop_string(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes())
    tokenizer = PolyLMTokenizer.from_pretrained(tmp_path)
    engine = engine_of(random_model(vocabulary=tokenizer.vocab_size))
    engine.tokenizer = tokenizer
    prompt = tokenizer.encode("Beijing is")
    text = tokenizer.decode(generate(engine, [prompt], max_new_tokens=30)[0][0].ids)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    answer = generate(engine, [prompt], max_new_tokens=30, stop_strings=["never there", stop])[0][0]
    stopped = tokenizer.decode(answer.ids)
    assert answer.finish_reason == "stop"
    assert stop in stopped and text.startswith(stopped)
    assert stop not in tokenizer.decode(answer.ids[:-1])


def test_a_minimum_above_the_limit_is_refused(engine):
    with pytest.raises(OptionError, match=r"at most 5 new tokens, but .* asks for 9"):
        generate(engine, [[1, 2]], max_new_tokens=5, min_length=11)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        ([[1, 2], []], {"max_new_tokens": 5}, "Prompt 1 has no tokens"),
        ([[1, 300]], {}, "outside 0..299"),
        ([[-1]], {}, "outside 0..299"),
        ([list(range(3, 99))], {"max_new_tokens": 1}, "shorten the prompt"),
        ([[1] * 90], {"max_new_tokens": 20}, "max_new_tokens to at most 6"),
        ([[1] * 10], {"max_length": 10}, "max_length=10"),
        ([[1, 2]], {"max_new_tokens": 2000}, "96 positions"),
    ],
)
def test_prompts_that_cannot_be_run_are_refused(engine, prompts, options, message):
    with pytest.raises(InputError, match=message):
        generate(engine, prompts, **options)


def test_the_last_position_can_be_used(engine):
    assert len(generate(engine, [[5] * 90], max_new_tokens=6, eos_token_id=299)[0][0].ids) == 6


def test_stop_strings_with_beams_are_refused():
    with pytest.raises(OptionError, match="backend='transformers'"):
        check_native(GenerationOptions.from_layers({"stop_strings": "x", "num_beams": 2}))
