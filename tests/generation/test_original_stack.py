"""By default, ids equal those of transformers 4.31.0, PolyLM's original stack (see record_original_stack)."""

from __future__ import annotations

import json

import pytest

from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import PROMPTS, random_model
from tests.generation.record_original_stack import ENDS, OPTIONS, RECORD

CASES = json.loads(RECORD.read_text())["cases"]


@pytest.fixture(scope="module")
def engine():
    return engine_of(random_model())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["options"]))
def test_ids_equal_the_original_stack(engine, case):
    alone = [[answer.ids for answer in generate(engine, [prompt], **case["options"])[0]] for prompt in PROMPTS]
    together = [[answer.ids for answer in answers] for answers in generate(engine, PROMPTS, **case["options"])]
    assert alone == case["answers"]
    assert together == case["answers"]


def test_the_record_is_complete_and_has_early_ends():
    answers = [answer for case in CASES for prompt in case["answers"] for answer in prompt]
    assert len(CASES) == len(OPTIONS) * len(ENDS)
    assert sum(len(answer) < 20 for answer in answers) > len(answers) / 10
