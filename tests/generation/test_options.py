"""Options: layers, checks, and the wording of what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import GenerationConfig

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import TRANSFORMERS_ONLY, GenerationOptions, option_fields

REFUSED = [
    ({"max_new_tokens": 0}, "at least 1"),
    ({"max_new_tokens": -3}, "at least 1"),
    ({"max_new_tokens": 1.5}, "whole number"),
    ({"max_new_tokens": True}, "whole number"),
    ({"max_length": 0}, "at least 1"),
    ({"min_length": -1}, "at least 0"),
    ({"temperature": 0}, "do_sample=False"),
    ({"temperature": -0.5}, "greater than 0"),
    ({"temperature": "warm"}, "finite number"),
    ({"temperature": float("nan")}, "finite number"),
    ({"top_p": 1.1}, "at most 1"),
    ({"top_p": -0.1}, "at least 0"),
    ({"top_k": -1}, "at least 0"),
    ({"typical_p": 0}, "greater than 0"),
    ({"repetition_penalty": 0}, "greater than 0"),
    ({"num_beams": 0}, "at least 1"),
    ({"num_beams": 65}, "at most 64"),
    ({"num_return_sequences": 0}, "at least 1"),
    ({"num_beams": 2, "num_return_sequences": 3}, "raise num_beams"),
    ({"num_return_sequences": 2}, "do_sample=True"),
    ({"do_sample": True, "num_beams": 4}, "backend='transformers'"),
    ({"do_sample": 1}, "True, False"),
    ({"early_stopping": "always"}, "'never'"),
    ({"beam_rules": "4.30"}, "'4.31'"),
    ({"eos_token_id": []}, "at least one"),
    ({"eos_token_id": -1}, "negative"),
    ({"eos_token_id": "2"}, "whole number"),
    ({"bad_words_ids": [[]]}, "non-empty lists"),
    ({"bad_words_ids": [3]}, "non-empty lists"),
    ({"stop_strings": ""}, "non-empty text"),
    ({"stop_strings": ["a", 3]}, "non-empty text"),
    ({"seed": -1}, "at least 0"),
    ({"temprature": 0.7}, "did you mean temperature"),
    ({"zzz": 1}, "the options are"),
    ({"num_beam_groups": 2}, "backend='transformers'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_wrong_options_are_refused_with_advice(options, message):
    with pytest.raises(OptionError, match=message):
        GenerationOptions.from_layers(options)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([{"max_new_tokens": 128}, {"max_length": 50}], {"max_new_tokens": None, "max_length": 50}),
        ([{"max_length": 1024}, {"max_new_tokens": 5}], {"max_new_tokens": 5, "max_length": None}),
        ([{"num_beams": 4}, {"do_sample": True}], {"num_beams": 1, "do_sample": True}),
        ([{"do_sample": True}, {"num_beams": 4}], {"num_beams": 4, "do_sample": False}),
        ([{"num_beams": 4}, {"do_sample": False}], {"num_beams": 1, "do_sample": False}),
        ([{"num_beams": 4}, {"num_beams": None}], {"num_beams": 4}),
        ([{"top_p": 0.8}, {"top_p": 0.9}, {}], {"top_p": 0.9}),
    ],
)
def test_later_layers_win_and_displace_rivals(layers, expected):
    options = dataclasses.asdict(GenerationOptions.from_layers(*layers))
    assert {name: options[name] for name in expected} == expected


def test_the_transformers_backend_keeps_its_own_options():
    options = GenerationOptions.from_layers({"num_beam_groups": 2, "num_beams": 4, "do_sample": True}, allow_extra=True)
    assert options.extra == {"num_beam_groups": 2}
    with pytest.raises(OptionError, match="did you mean num_beam_groups"):
        GenerationOptions.from_layers({"num_beam_group": 2}, allow_extra=True)


def test_every_option_is_described_and_known_to_transformers():
    ours_alone = {"seed", "beam_rules", "output_logprobs"}
    config = GenerationConfig()
    for field in option_fields():
        assert field.metadata["help"].endswith(".")
        assert field.name in ours_alone or hasattr(config, field.name)
    assert not TRANSFORMERS_ONLY & {field.name for field in option_fields()}


@pytest.mark.parametrize(
    ("given", "prompt", "expected"),
    [({}, 10, 128), ({"max_new_tokens": 7}, 10, 7), ({"max_length": 12}, 10, 2), ({"max_length": 9}, 10, -1)],
)
def test_room_for_new_tokens(given, prompt, expected):
    assert GenerationOptions.from_layers(given).new_tokens(prompt) == expected


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"temperature": 5.0, "num_beams": 4}, ["temperature"]),
        (
            {"top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5, "seed": 1},
            ["top_k", "top_p", "min_p", "typical_p", "seed"],
        ),
        ({"temperature": 1.0, "top_k": 50, "repetition_penalty": 2.0}, []),
        ({"temperature": 5.0, "do_sample": True}, []),
    ],
)
def test_options_without_effect(given, names):
    assert GenerationOptions.from_layers(given).without_effect(given) == names


@pytest.mark.parametrize(("name", "ours"), [("stop", "stop_strings"), ("max_tokens", "max_new_tokens")])
def test_names_of_other_programs(name, ours):
    with pytest.raises(OptionError, match=f"did you mean {ours}"):
        GenerationOptions.from_layers({name: "x"})
