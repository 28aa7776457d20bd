"""The sizes of a PolyLM network, read from a snapshot's config.json and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modelscope_polylm.errors import SnapshotError, shortened, shown

ARCHITECTURES = ("GPT2LMHeadModel", "PolyLMHeadModel")
# gelu_fast, gelu_new and gelu_pytorch_tanh are three names of one function, the tanh approximation of GELU.
ACTIVATIONS = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")
# GPT2Config reads the second name as the first.
SIZE_NAMES: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "max_positions": ("n_positions", "max_position_embeddings"),
    "hidden_size": ("n_embd", "hidden_size"),
    "layers": ("n_layer", "num_hidden_layers"),
    "heads": ("n_head", "num_attention_heads"),
    "intermediate_size": ("n_inner",),
}
# Far beyond 13B, and still small enough to be listed and added up in no time.
LARGEST_SIZES = {
    "vocab_size": 1 << 22,
    "max_positions": 1 << 20,
    "hidden_size": 1 << 16,
    "layers": 1 << 10,
    "heads": 1 << 10,
    "intermediate_size": 1 << 20,
}
# What these keys must say, if they are there, for the network to be the one that PolyLM was trained as.
FIXED_KEYS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# What the entry quantization_config may say: GPTQ's first format, as `network.gptq` reads it; and the value of a key
# that is missing.
GPTQ_BITS = {4: "int4", 8: "int8"}
GPTQ_GROUP = 128
GPTQ_KEYS = {
    "group_size": GPTQ_GROUP,
    "sym": True,
    "desc_act": False,
    "lm_head": False,
    "checkpoint_format": "gptq",
    "format": "gptq",
    "pack_dtype": "int32",
}


@dataclasses.dataclass(frozen=True)
class PolyLMConfig:
    """Sizes of a GPT-2 network: learned positions, tanh GELU, output tied to the embedding; the class it names.

    Attributes:
        quantization: 'int4' or 'int8' where the files hold projections in GPTQ's format; None: plain numbers.
    """

    vocab_size: int
    max_positions: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    epsilon: float
    architecture: str = ARCHITECTURES[0]
    quantization: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolyLMConfig:
        """Read the contents of a config.json with the names of transformers' GPT2Config.

        Raises:
            SnapshotError: names every problem: a network that is not GPT-2, or a size that is missing or impossible.
        """
        if not isinstance(values, Mapping):
            raise SnapshotError(f"config.json holds a {type(values).__name__}, not an object with settings.")
        problems = [*_identity_problems(values), *_variant_problems(values)]
        fields = [field for field in SIZE_NAMES if field != "intermediate_size" or values.get("n_inner") is not None]
        sizes = {field: _size(values, field, problems) for field in fields}
        sizes.setdefault("intermediate_size", 4 * sizes["hidden_size"])
        epsilon = _epsilon(values, problems)
        if sizes["heads"] and sizes["hidden_size"] % sizes["heads"]:
            problems.append(f"n_embd {sizes['hidden_size']} cannot be divided among n_head {sizes['heads']} heads")
        quantization = _quantization(values, sizes, problems)
        if problems:
            raise SnapshotError("\n".join(shortened([f"config.json: {problem}." for problem in problems])))
        return cls(**sizes, epsilon=epsilon, architecture=_architecture(values), quantization=quantization)

    def to_dict(self) -> dict[str, Any]:
        """A config.json of these sizes, with the names of transformers' GPT2Config; `from_dict` reads it back."""
        return {
            "architectures": [ARCHITECTURES[0]],
            "model_type": "gpt2",
            **{names[0]: getattr(self, field) for field, names in SIZE_NAMES.items()},
            "layer_norm_epsilon": self.epsilon,
            "activation_function": ACTIVATIONS[0],
            "tie_word_embeddings": True,
        }

    @property
    def head_dim(self) -> int:
        """Numbers in one head's query, key or value."""
        return self.hidden_size // self.heads

    @property
    def parameters(self) -> int:
        """Trained numbers, the embedding counted once although it is also the output layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = 4 * hidden * hidden + 4 * hidden
        feed_forward = 2 * hidden * inner + inner + hidden
        norms = 4 * hidden
        return (self.vocab_size + self.max_positions + 2) * hidden + self.layers * (attention + feed_forward + norms)


def _architecture(values: Mapping[str, Any]) -> str:
    return next((name for name in _architectures(values) if name in ARCHITECTURES), ARCHITECTURES[0])


def _architectures(values: Mapping[str, Any]) -> list[Any]:
    architectures = values.get("architectures") or []
    return architectures if isinstance(architectures, list) else [architectures]


def _identity_problems(values: Mapping[str, Any]) -> list[str]:
    names = _architectures(values)
    known = any(name in ARCHITECTURES for name in names)
    model_type = values.get("model_type")
    problems = []
    if model_type != "gpt2" and not (model_type is None and known):
        found = "does not say its model_type" if model_type is None else f"model_type is {model_type!r:.80}"
        problems.append(f"{found}; PolyLM is 'gpt2', so this is a snapshot of another model")
    if names and not known:
        problems.append(f"architectures is {names!r:.80}; expected one of {', '.join(ARCHITECTURES)}")
    return problems


def _variant_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    activation = values.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        problems.append(f"activation_function is {activation!r:.80}; expected one of {', '.join(ACTIVATIONS)}")
    for key, value in values.items():
        if key == "position_embedding_type" and "absolute" not in str(value):
            problems.append(f"{shown(key)} is {value!r:.80}, but only GPT-2's learned positions are supported")
        if ("rotary" in key or "rope" in key or "alibi" in key) and value and not _is_addition(key, values):
            problems.append(f"{shown(key)} is {value!r:.80}, but only GPT-2's learned positions are supported")
        if key in FIXED_KEYS and value not in (None, FIXED_KEYS[key]):
            problems.append(f"{shown(key)} is {value!r:.80}, but only {FIXED_KEYS[key]} is supported")
    return problems


def _is_addition(key: str, values: Mapping[str, Any]) -> bool:
    """Whether GPTQModel has put it there: it writes default rope_parameters for every model, and GPT-2 reads none."""
    value = values[key]
    is_default = isinstance(value, Mapping) and value.get("rope_type") == "default"
    return key == "rope_parameters" and is_default and bool(values.get("quantization_config"))


def _quantization(values: Mapping[str, Any], sizes: Mapping[str, int], problems: list[str]) -> str | None:
    """The format of the projections that quantization_config names."""
    settings = values.get("quantization_config")
    if not settings:
        return None
    found = _gptq_problems(settings, sizes) if isinstance(settings, Mapping) else ["is no object with settings"]
    advice = "quantise the original model with `polylm package MODEL OUT --quantization int4`"
    problems.extend(f"quantization_config {problem}: {advice}" for problem in found)
    return None if found else GPTQ_BITS[settings["bits"]]


def _gptq_problems(settings: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    method, bits = settings.get("quant_method"), settings.get("bits")
    if method != "gptq":
        return [f"has quant_method {method!r:.40}, but only 'gptq' is supported"]
    problems = [
        f"has {key} {settings[key]!r:.40}, but only {value!r} is supported"
        for key, value in GPTQ_KEYS.items()
        if settings.get(key) not in (None, value)
    ]
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in GPTQ_BITS:
        problems.append(f"has bits {bits!r:.40}, but only 4 and 8 are supported")
    if settings.get("dynamic"):
        problems.append("has dynamic, rules for single layers, which are not supported")
    widths = [sizes[name] for name in ("hidden_size", "intermediate_size") if sizes[name] % GPTQ_GROUP]
    return problems + [f"needs sizes that are multiples of {GPTQ_GROUP}, unlike {width}" for width in widths]


def _size(values: Mapping[str, Any], field: str, problems: list[str]) -> int:
    names, largest = SIZE_NAMES[field], LARGEST_SIZES[field]
    name = next((name for name in names if name in values), None)
    if name is None:
        problems.append(f"{names[0]} is missing")
        return 0
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        problems.append(f"{name} is {value!r:.80}, but must be a whole number from 1 to {largest:,}")
        return 0
    return value


def _epsilon(values: Mapping[str, Any], problems: list[str]) -> float:
    value = values.get("layer_norm_epsilon", 1e-5)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        problems.append(f"layer_norm_epsilon is {value!r:.80}, but must be a number greater than 0 and at most 1")
        return 0.0
    return float(value)
