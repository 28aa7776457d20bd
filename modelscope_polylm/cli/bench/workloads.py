"""What `polylm bench` measures: workloads, and networks of a release's sizes with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.weights import declared_shapes

GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1}
BEAMS: Mapping[str, Any] = {"do_sample": False, "num_beams": 4, "early_stopping": True}
SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.02}


CONTEXT_UNIT = "ms/token"
"""Unit of the points that are drawn against the context's length: a further token's time, without the first's."""

ROWS_UNIT = "tokens/s"
"""Unit of the points that are drawn against the number of rows."""


@dataclasses.dataclass(frozen=True)
class Work:
    """`rows` prompts of `prompt` tokens, each continued by exactly `new` tokens."""

    name: str
    rows: int
    prompt: int
    new: int
    options: Mapping[str, Any]
    unit: str = "ms/step"

    def value(self, seconds: float) -> float:
        """The wall time of one call in the work's unit: ms/step, ms/token, tokens/s or ms."""
        if self.unit == ROWS_UNIT:
            return self.rows * self.new / seconds
        return seconds * 1e3 / {"ms/step": self.new, CONTEXT_UNIT: self.new - 1, "ms": 1}[self.unit]

    def beginning(self) -> Work | None:
        """The part of the work whose time does not count: the first token where only further ones do."""
        return dataclasses.replace(self, new=1) if self.unit == CONTEXT_UNIT else None


WORKS = (
    Work("greedy, 1 row, 32 + 128", 1, 32, 128, GREEDY),
    Work("4 beams, 1 row, 32 + 128", 1, 32, 128, BEAMS),
    Work("sampling, 1 row, 32 + 128", 1, 32, 128, SAMPLING),
    Work("4 beams, 1 row, 1800 + 64", 1, 1800, 64, BEAMS),
    Work("greedy, 16 rows, 128 + 128", 16, 128, 128, GREEDY, ROWS_UNIT),
    Work("greedy, 64 rows, 128 + 128", 64, 128, 128, GREEDY, ROWS_UNIT),
    Work("4 beams, 16 rows, 128 + 64", 16, 128, 64, BEAMS),
    Work("prefill, 1 row, 1920 tokens", 1, 1920, 1, GREEDY, "ms"),
    Work("greedy, 1 row, 128 + 128", 1, 128, 128, GREEDY, ROWS_UNIT),
    Work("greedy, 4 rows, 128 + 128", 4, 128, 128, GREEDY, ROWS_UNIT),
    Work("greedy, 1 row, 32 + 33", 1, 32, 33, GREEDY, CONTEXT_UNIT),
    Work("greedy, 1 row, 512 + 33", 1, 512, 33, GREEDY, CONTEXT_UNIT),
    Work("greedy, 1 row, 1024 + 33", 1, 1024, 33, GREEDY, CONTEXT_UNIT),
    Work("greedy, 1 row, 1800 + 33", 1, 1800, 33, GREEDY, CONTEXT_UNIT),
)


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
