"""Small random networks, the same in our engine and in transformers' GPT2LMHeadModel."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from modelscope_polylm.generation.engine import Engine
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Completion, DeltaStream
from modelscope_polylm.generation.requests import checked_requests
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.gpt2 import Decoder

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@dataclasses.dataclass(frozen=True)
class IdBounds:
    """Stands where the engine wants a tokenizer and only asks for its size."""

    vocab_size: int


def engine_of(
    model: GPT2LMHeadModel,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer_size: int | None = None,
    **options: Any,
) -> Engine:
    """An engine with the model's weights, which generates ids below `tokenizer_size`, or all."""
    weights = {}
    for name, tensor in model.transformer.state_dict().items():
        transposed = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        weights[name] = transposed.to(device, dtype)
    bounds = IdBounds(tokenizer_size or model.config.vocab_size)
    return Engine(Decoder(PolyLMConfig.from_dict(model.config.to_dict()), weights), bounds, **options)


def submit(engine: Engine, prompts: list[list[int]], partial: bool = True, **options: Any) -> DeltaStream:
    """The deltas of prompts with equal options."""
    checked = GenerationOptions.from_layers(options)
    return engine.submit(checked_requests(prompts, checked, engine.decoder.config), partial)


def generate(engine: Engine, prompts: list[list[int]], **options: Any) -> list[list[Completion]]:
    """The engine's answers."""
    return submit(engine, prompts, partial=False, **options).completions()
