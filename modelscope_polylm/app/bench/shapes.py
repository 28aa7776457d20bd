"""The published shapes with random weights: the time of a step does not depend on the weights' values."""

from __future__ import annotations

import torch

from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.weights import declared_shapes

SHAPES = {
    "13b": {"n_layer": 40, "n_head": 40, "n_embd": 5120, "vocab_size": 256000, "n_positions": 2048},
    "1.7b": {"n_layer": 24, "n_head": 16, "n_embd": 2048, "vocab_size": 256000, "n_positions": 2048},
    "small": {"n_layer": 2, "n_head": 2, "n_embd": 256, "vocab_size": 4000, "n_positions": 2048},
}
"""config.json's keys for each name; 'small' is for trying the benchmark itself."""


def shape_config(name: str) -> PolyLMConfig:
    """The network sizes of a published shape."""
    return PolyLMConfig.from_dict({"model_type": "gpt2", "activation_function": "gelu_fast", **SHAPES[name]})


def random_weights(config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every declared tensor, drawn from a normal distribution of deviation 0.02."""
    return {
        name: torch.empty(shape, device=device, dtype=dtype).normal_(0, 0.02)
        for name, shape in declared_shapes(config).items()
    }


def random_decoder(config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A decoder of `random_weights`."""
    return Decoder(config, random_weights(config, device, dtype))
