"""config.json becomes a PolyLMConfig, or one error that names all that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.network.config import PolyLMConfig

# What the published snapshots say.
PUBLISHED: dict[str, Any] = {
    "activation_function": "gelu_fast",
    "architectures": ["GPT2LMHeadModel"],
    "bos_token_id": 255999,
    "eos_token_id": 255999,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 2048,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 24,
    "n_positions": 2048,
    "scale_attn_weights": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
}
BASE_13B = {
    **PUBLISHED,
    "architectures": ["PolyLMHeadModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_polylm.PolyLMHeadModel"},
    "n_embd": 5120,
    "n_head": 40,
    "n_layer": 40,
}


@pytest.mark.parametrize(("values", "parameters"), [(PUBLISHED, 1_737_084_928), (BASE_13B, 13_906_790_400)])
def test_published_sizes(values: dict[str, Any], parameters: int) -> None:
    config = PolyLMConfig.from_dict(values)
    assert config.parameters == parameters
    assert config.head_dim == 128
    assert config.intermediate_size == 4 * config.hidden_size
    assert config.epsilon == 1e-5


def test_random_snapshot(random_snapshot: Path) -> None:
    config = PolyLMConfig.from_dict(json.loads((random_snapshot / "config.json").read_text()))
    assert config == PolyLMConfig(512, 256, 256, 2, 2, 1024, 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"n_inner": 4096},
        {"architectures": None},
        {"architectures": ["PolyLMHeadModel"], "model_type": None},
        {"rotary_dim": None, "tie_word_embeddings": True, "position_embedding_type": "learned_absolute"},
        {"some_key_of_a_later_version": [1, 2]},
        {"layer_norm_epsilon": 1},
    ],
)
def test_accepted(change: dict[str, Any]) -> None:
    config = PolyLMConfig.from_dict({**PUBLISHED, **change})
    assert config.intermediate_size == (change.get("n_inner") or 8192)


def test_names_of_the_config_class() -> None:
    renamed = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings"}
    values = {renamed.get(name, name): value for name, value in PUBLISHED.items()}
    assert PolyLMConfig.from_dict(values) == PolyLMConfig.from_dict(PUBLISHED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; PolyLM is 'gpt2'"),
        ({"model_type": None, "architectures": []}, "does not say its model_type"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "architectures is ['GPT2ForSequenceClassification']"),
        ({"architectures": 5}, "architectures is [5]"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; expected one of gelu_fast"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"rotary_dim": 64}, "rotary_dim is 64, but only GPT-2's learned positions"),
        ({"rope_theta": 10000.0}, "rope_theta is 10000.0"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type is 'rotary'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, but only True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config has quant_method None"),
        ({"n_embd": 0}, "n_embd is 0, but must be a whole number"),
        ({"n_layer": -1}, "n_layer is -1"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_layer": 10**6}, "n_layer is 1000000, but must be a whole number from 1 to 1,024"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"n_embd": 10**30, "n_head": 1}, "n_embd is 1000000000000000000000000000000, but must"),
        ({"vocab_size": 2**40}, "from 1 to 4,194,304"),
        ({"n_inner": 2**21}, "n_inner is 2097152"),
        ({"architectures": [["GPT2LMHeadModel"]]}, "architectures is [['GPT2LMHeadModel']]"),
        ({"layer_norm_epsilon": 10**400}, "layer_norm_epsilon is 1000"),
        ({"rope_\n": 1}, r"'rope_\n' is 1, but only"),
        ({"n_positions": 2048.0}, "n_positions is 2048.0"),
        ({"vocab_size": "256000"}, "vocab_size is '256000'"),
        ({"n_inner": "large"}, "n_inner is 'large'"),
        ({"n_head": 15}, "n_embd 2048 cannot be divided among n_head 15 heads"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0, but must be a number greater than 0"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SnapshotError) as error:
        PolyLMConfig.from_dict({**PUBLISHED, **change})
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_long_values_are_cut() -> None:
    with pytest.raises(SnapshotError) as error:
        PolyLMConfig.from_dict({**PUBLISHED, **{f"rope_{number}": "x" * 10**6 for number in range(100)}})
    lines = str(error.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "and 80 more like these"
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_missing_size(name: str) -> None:
    with pytest.raises(SnapshotError, match=f"^config.json: {name} is missing.$"):
        PolyLMConfig.from_dict({key: value for key, value in PUBLISHED.items() if key != name})


def test_all_problems_at_once() -> None:
    with pytest.raises(SnapshotError) as error:
        PolyLMConfig.from_dict({"model_type": "bert", "n_head": "x"})
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    assert all(line.startswith("config.json: ") for line in lines)


@pytest.mark.parametrize("values", [None, [], "gpt2", 5])
def test_not_an_object(values: Any) -> None:
    with pytest.raises(SnapshotError, match="not an object with settings"):
        PolyLMConfig.from_dict(values)


def test_written_sizes_are_read_back() -> None:
    config = PolyLMConfig(
        vocab_size=300, max_positions=64, hidden_size=96, layers=3, heads=4, intermediate_size=200, epsilon=1e-6
    )
    assert PolyLMConfig.from_dict(config.to_dict()) == config
