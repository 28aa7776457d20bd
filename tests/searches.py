"""The searches on which engines must agree, as options over the defaults of each test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Search = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """What a table needs to know of a model.

    Attributes:
        ends: tokens that end answers; a test's defaults name all of them, so that many answers end early.
        bad_words: at least five sequences that its answers hold, the first three of one, one and two tokens.
    """

    ends: list[int]
    bad_words: list[list[int]]


def greedy_searches(tokens: Tokens) -> list[Search]:
    """Greedy search with each rule, alone and with others."""
    return [
        {},
        {"max_new_tokens": 1},
        {"max_new_tokens": 40},
        {"eos_token_id": tokens.ends[-1]},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"repetition_penalty": 0.8, "min_new_tokens": 8},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
        {"min_new_tokens": 12},
        {"min_length": 14},
        {"min_length": 45, "max_new_tokens": 60},
        {"max_new_tokens": None, "max_length": 40},
        {"bad_words_ids": tokens.bad_words[:3]},
        {"bad_words_ids": tokens.bad_words[3:], "repetition_penalty": 1.2, "min_new_tokens": 5},
    ]


def beam_searches(tokens: Tokens) -> list[Search]:
    """Beam search with each rule, alone and with others; by whose rules is up to the test."""
    return [
        {"num_beams": 2},
        {"num_beams": 3},
        {"num_beams": 4, "early_stopping": True},
        {"num_beams": 4, "early_stopping": "never"},
        {"num_beams": 5, "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -1.0},
        {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never"},
        {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True},
        {"num_beams": 4, "length_penalty": 0.5, "early_stopping": "never"},
        {"num_beams": 2, "length_penalty": 2.0, "early_stopping": "never"},
        {"num_beams": 4, "repetition_penalty": 1.3},
        {"num_beams": 4, "repetition_penalty": 1.02, "early_stopping": True},
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        {"num_beams": 3, "no_repeat_ngram_size": 1, "early_stopping": True},
        {"num_beams": 3, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
        {"num_beams": 4, "num_return_sequences": 4},
        {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True, "length_penalty": 1.5},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0},
        {"num_beams": 4, "min_new_tokens": 9, "early_stopping": True},
        {"num_beams": 4, "min_length": 12},
        {"num_beams": 3, "bad_words_ids": tokens.bad_words[:3]},
        {"num_beams": 2, "bad_words_ids": tokens.bad_words[:1], "min_new_tokens": 5},
        {"num_beams": 8, "early_stopping": True},
        {"num_beams": 12, "max_new_tokens": 6},
        {"num_beams": 4, "eos_token_id": tokens.ends[-1], "early_stopping": True},
        {"num_beams": 4, "eos_token_id": tokens.ends[-2:]},
        {"num_beams": 4, "max_new_tokens": 1, "num_return_sequences": 4},
        {"num_beams": 4, "max_new_tokens": 40, "early_stopping": True},
        {"num_beams": 4, "max_new_tokens": None, "max_length": 40, "early_stopping": True},
        {"num_beams": 3, "max_new_tokens": None, "max_length": 40, "min_length": 10},
    ]
