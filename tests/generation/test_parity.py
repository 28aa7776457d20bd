"""Greedy and beam search ids equal those of today's transformers, alone and in ragged batches, in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import END_TOKENS, PROMPTS, answer_of, random_model

GREEDY: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 1},
    {"max_new_tokens": 40},
    {"eos_token_id": 299},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    {"min_new_tokens": 12},
    {"min_length": 14},
    {"max_new_tokens": None, "max_length": 36},
    {"bad_words_ids": [[44], [120], [7, 8]]},
    {"bad_words_ids": [[30, 31, 32], [251]], "repetition_penalty": 1.2, "min_new_tokens": 5},
]
BEAMS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 3},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 4, "early_stopping": "never"},
    {"num_beams": 5, "length_penalty": 2.0},
    {"num_beams": 3, "length_penalty": -1.0},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True},
    {"num_beams": 4, "repetition_penalty": 1.3},
    {"num_beams": 4, "repetition_penalty": 1.02, "early_stopping": True},
    {"num_beams": 3, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "no_repeat_ngram_size": 1, "early_stopping": True},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True, "length_penalty": 1.5},
    {"num_beams": 4, "min_new_tokens": 9, "early_stopping": True},
    {"num_beams": 4, "min_length": 12},
    {"num_beams": 3, "bad_words_ids": [[44], [7, 8], [120, 121]]},
    {"num_beams": 8, "early_stopping": True},
    {"num_beams": 4, "eos_token_id": 299, "early_stopping": True},
    {"num_beams": 4, "eos_token_id": [100, 299]},
    {"num_beams": 4, "max_new_tokens": 1, "num_return_sequences": 4},
    {"num_beams": 4, "max_new_tokens": 40, "early_stopping": True},
    {"num_beams": 4, "max_new_tokens": None, "max_length": 36, "early_stopping": True},
]
TABLE = GREEDY + [{**options, "beam_rules": "5"} for options in BEAMS]


@pytest.fixture(scope="module")
def pair():
    model = random_model()
    return engine_of(model), model


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    return {"max_new_tokens": 20, "eos_token_id": END_TOKENS, "pad_token_id": 0, "do_sample": False, **case}


def reference(model, prompt: list[int], options: dict[str, Any]) -> list[list[int]]:
    known = {name: value for name, value in options.items() if name != "beam_rules" and value is not None}
    ends = known["eos_token_id"] if isinstance(known["eos_token_id"], list) else [known["eos_token_id"]]
    ids = torch.tensor([prompt])
    sequences = model.generate(ids, attention_mask=torch.ones_like(ids), **known)
    return [answer_of(sequence, prompt, ends) for sequence in sequences.tolist()]


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_ids_equal_transformers(pair, case):
    engine, model = pair
    options = options_of(case)
    expected = [reference(model, prompt, options) for prompt in PROMPTS]
    alone = [generate(engine, [prompt], **options)[0] for prompt in PROMPTS]
    together = generate(engine, PROMPTS, **options)
    assert [[answer.ids for answer in answers] for answers in alone] == expected
    assert [[answer.ids for answer in answers] for answers in together] == expected


def test_the_table_ends_early_and_at_the_limit(pair):
    engine, _ = pair
    reasons = {
        answer.finish_reason
        for case in TABLE
        for answers in generate(engine, PROMPTS, **options_of(case))
        for answer in answers
    }
    assert reasons == {"eos", "length"}


def test_beam_scores_equal_transformers(pair):
    engine, model = pair
    options = options_of({"num_beams": 4, "num_return_sequences": 4, "length_penalty": 1.4})
    ids = torch.tensor([PROMPTS[1]])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_scores=True, **options
    )
    answers = generate(engine, [PROMPTS[1]], beam_rules="5", **options)[0]
    assert [answer.score for answer in answers] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)
