"""The engines that are compared. Each runs a piece of work once and leaves the device idle.

All are made of the sizes, a device, a dtype, and the snapshot that has the weights, None for random ones.
"""

from __future__ import annotations

import abc
import gc
from typing import Any, cast

import torch

from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.cli.bench.workloads import Work, random_decoder
from modelscope_polylm.generation.engine import Engine
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

NO_END = 3
"""An end token that all but never comes, so that calls add as many tokens as they should."""


class Contender(abc.ABC):
    """An engine with a model loaded."""

    name: str

    @abc.abstractmethod
    def run(self, work: Work) -> None:
        """Do the work once, on fresh random prompts."""


class Ours(Contender):
    """The native engine."""

    name = "polylm"

    def __init__(
        self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype, snapshot: Snapshot | None = None
    ):
        if snapshot is None:
            vocabulary = cast(PolyLMTokenizer, Vocabulary(config.vocab_size))
            self.engine = Engine(random_decoder(config, device, dtype), vocabulary)
        else:
            self.engine = NativeBackend(snapshot, device, dtype).engine

    def run(self, work: Work) -> None:
        """Do the work once. Raises RuntimeError if every answer ended too early, so that the time is of fewer steps."""
        options = GenerationOptions.from_layers({"max_new_tokens": work.new, "eos_token_id": NO_END, **work.options})
        added = [0] * work.rows
        for update in self.engine.stream(_prompts(work, self.engine.decoder.config.vocab_size).tolist(), options):
            added = [count + len(ids) for count, ids in zip(added, update, strict=True)]
        if max(added) < work.new:
            raise RuntimeError(f"the longest answer ended after {max(added)} of {work.new} tokens: run it again.")


class Transformers(Contender):
    """GPT2LMHeadModel.generate, eager or with a static cache and a compiled step."""

    def __init__(
        self,
        config: PolyLMConfig,
        device: torch.device,
        dtype: torch.dtype,
        snapshot: Snapshot | None = None,
        static: bool = False,
    ):
        self.name = "transformers static" if static else "transformers"
        self._static = {"cache_implementation": "static"} if static else {}
        self._device = device
        self._model = (
            _random_transformers(config, device, dtype) if snapshot is None else _transformers(snapshot, device, dtype)
        )

    def run(self, work: Work) -> None:
        """Do the work once."""
        ids = _prompts(work, self._model.config.vocab_size).to(self._device)
        ends = {"max_new_tokens": work.new, "min_new_tokens": work.new, "eos_token_id": NO_END, "pad_token_id": 0}
        self._model.generate(ids, attention_mask=torch.ones_like(ids), **ends, **self._static, **work.options)


class Vocabulary:
    """Stands where the engine wants a tokenizer and only asks for its size."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size


def release_memory() -> None:
    """Give the memory of contenders that are gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _prompts(work: Work, vocab_size: int) -> torch.Tensor:
    return torch.randint(4, vocab_size, (work.rows, work.prompt))


def _transformers(snapshot: Snapshot, device: torch.device, dtype: torch.dtype) -> Any:
    from modelscope_polylm.backends.transformers.backend import TransformersBackend

    return TransformersBackend(snapshot, device, dtype).model


def _random_transformers(config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_positions, n_embd=config.hidden_size,
        n_layer=config.layers, n_head=config.heads, activation_function="gelu_fast", bos_token_id=1, eos_token_id=2,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = GPT2LMHeadModel(sizes)
    model = model.to(dtype).to_empty(device=device)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    return model.eval()
