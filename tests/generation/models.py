"""Small random networks, the same in our engine and in transformers' GPT2LMHeadModel."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from modelscope_polylm.generation.engine import Engine
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Answer
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.gpt2 import Decoder

TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@dataclasses.dataclass(frozen=True)
class IdBounds:
    """Stands where the engine wants a tokenizer and only asks for its size."""

    vocab_size: int


def engine_of(
    model: GPT2LMHeadModel, device: str = "cpu", dtype: torch.dtype = torch.float32, tokenizer_size: int | None = None
) -> Engine:
    """An engine with the model's weights, which generates ids below `tokenizer_size`, or all."""
    weights = {}
    for name, tensor in model.transformer.state_dict().items():
        turned = tensor.t().contiguous() if name.endswith(TURNED) else tensor
        weights[name] = turned.to(device, dtype)
    bounds = IdBounds(tokenizer_size or model.config.vocab_size)
    return Engine(Decoder(PolyLMConfig.from_dict(model.config.to_dict()), weights), bounds)


def generate(engine: Engine, prompts: list[list[int]], **options: Any) -> list[list[Answer]]:
    """The engine's answers for a batch."""
    updates = engine.stream(prompts, GenerationOptions.from_layers(options))
    while True:
        try:
            next(updates)
        except StopIteration as finished:
            return finished.value
