"""Our options as vLLM's, and what is refused; without vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from modelscope_polylm.backends.vllm.options import (
    ELSEWHERE,
    REFUSALS,
    RULES,
    check_options,
    sampling_parameters,
    wants_logprobs,
)
from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import GenerationOptions, option_fields
from modelscope_polylm.generation.requests import checked_requests
from modelscope_polylm.network.config import PolyLMConfig

CONFIG = PolyLMConfig.from_dict(
    {"model_type": "gpt2", "activation_function": "gelu_fast", "n_layer": 1, "n_head": 2, "n_embd": 256,
     "vocab_size": 500, "n_positions": 64}
)  # fmt: skip
PLAIN = {
    "max_tokens": 128,
    "min_tokens": 0,
    "temperature": 0.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "n": 1,
    "stop_token_ids": [2],
    "seed": None,
    "logprobs": None,
    "ignore_eos": True,
    "detokenize": False,
}
TABLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"max_new_tokens": 7}, {"max_tokens": 7}),
    ({"max_length": 20}, {"max_tokens": 15}),
    ({"min_new_tokens": 4}, {"min_tokens": 4}),
    ({"min_length": 9}, {"min_tokens": 4}),
    ({"min_length": 3}, {"min_tokens": 0}),
    ({"temperature": 0.7}, {"temperature": 0.0}),
    ({"do_sample": True}, {"temperature": 1.0}),
    ({"do_sample": True, "temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8}),
    ({"do_sample": True, "top_k": 0}, {"temperature": 1.0, "top_k": 0}),
    ({"do_sample": True, "top_p": 0.0}, {"temperature": 1.0, "top_p": 1e-9}),
    ({"do_sample": True, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.1}),
    ({"repetition_penalty": 1.02}, {"repetition_penalty": 1.02}),
    ({"eos_token_id": [2, 11]}, {"stop_token_ids": [2, 11]}),
    ({"do_sample": True, "num_return_sequences": 3}, {"temperature": 1.0, "n": 3, "logprobs": 0}),
    ({"output_scores": True}, {"logprobs": 0}),
    ({"output_logprobs": True}, {"logprobs": 0}),
    ({"do_sample": True, "seed": 5}, {"temperature": 1.0, "seed": 5}),
    ({"do_sample": True, "seed": 2**63 - 1}, {"temperature": 1.0, "seed": 2**63 - 1}),
    ({"stop_strings": ["x"]}, {}),
    ({"pad_token_id": 3}, {}),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2"),
    ({"bad_words_ids": [[5]]}, "bad_words_ids="),
    ({"do_sample": True, "typical_p": 0.9}, "typical_p=0.9"),
    ({"do_sample": True, "temperature": 0.005}, "temperature=0.005"),
    ({"do_sample": True, "temperature": 2.5}, "temperature=2.5"),
    ({"do_sample": True, "min_p": 0.1, "top_p": 0.9}, "min_p=0.1"),
    ({"num_beams": 2, "repetition_penalty": 1.1}, "repetition_penalty=1.1"),
    ({"num_beams": 2, "stop_strings": "x"}, "stop_strings='x'"),
]


def parameters(allowed_ids: list[int] | None = None, **given: Any) -> dict[str, Any]:
    options = GenerationOptions.from_layers(given)
    (request,) = checked_requests(
        [[7] * 5], options, CONFIG if "max_new_tokens" in given or "max_length" in given else LONG
    )
    return dict(sampling_parameters(request, allowed_ids))


LONG = PolyLMConfig.from_dict(
    {"model_type": "gpt2", "activation_function": "gelu_fast", "n_layer": 1, "n_head": 2, "n_embd": 256,
     "vocab_size": 500, "n_positions": 512}
)  # fmt: skip


@pytest.mark.parametrize(("given", "changed"), TABLE, ids=lambda value: str(value))
def test_the_table(given: dict[str, Any], changed: dict[str, Any]) -> None:
    check_options(GenerationOptions.from_layers(given))
    assert parameters(**given) == {**PLAIN, **changed}


def test_each_option_is_followed_or_refused() -> None:
    followed = {name for rule in RULES for name in rule.options} | set(ELSEWHERE)
    refused = {refusal.option for refusal in REFUSALS}
    assert followed | refused == {field.name for field in option_fields()}
    assert len({rule.parameter for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=lambda value: str(value))
def test_refusals_name_the_option_its_value_and_who_has_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(
        OptionError, match=r"is not in the vllm backend .*use backend='(native|transformers)'"
    ) as caught:
        check_options(GenerationOptions.from_layers(given))
    assert message in str(caught.value)


def test_every_refusal_is_tried() -> None:
    options = [GenerationOptions.from_layers(given) for given, _ in REFUSED]
    assert all(any(refusal.is_met(each) for each in options) for refusal in REFUSALS)
    assert not any(refusal.is_met(GenerationOptions()) for refusal in REFUSALS)


@pytest.mark.parametrize("given", [{"typical_p": 0.9}, {"temperature": 0.001}, {"min_p": 0.1, "top_p": 0.5}])
def test_what_only_sampling_reads_is_refused_in_sampling_alone(given: dict[str, Any]) -> None:
    check_options(GenerationOptions.from_layers(given))
    with pytest.raises(OptionError, match="is not in the vllm backend"):
        check_options(GenerationOptions.from_layers({**given, "do_sample": True}))


def test_allowed_ids() -> None:
    assert parameters(allowed_ids=[0, 1, 2]) == {**PLAIN, "allowed_token_ids": [0, 1, 2]}


def test_logprobs_are_asked_for_where_answers_are_ranked() -> None:
    assert not wants_logprobs(GenerationOptions())
    assert wants_logprobs(GenerationOptions.from_layers({"do_sample": True, "num_return_sequences": 2}))
