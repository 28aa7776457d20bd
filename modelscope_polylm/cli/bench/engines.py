"""The engines that are compared. Each is made of a snapshot, a device and a dtype, and runs a workload once."""

from __future__ import annotations

import abc
import gc
from typing import Any

import torch

from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.cli.bench.workloads import Workload, has_random_weights
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.snapshot import Snapshot

NO_END = 3
"""An end token that all but never comes, so that answers are as long as they should be."""


class BenchEngine(abc.ABC):
    """An engine with a model loaded."""

    name: str

    @abc.abstractmethod
    def run(self, workload: Workload) -> None:
        """Do the work once, on fresh random prompts; it may still run on the device on return."""


class PolyLMEngine(BenchEngine):
    """The native backend."""

    name = "polylm"

    def __init__(self, snapshot: Snapshot, device: torch.device, dtype: torch.dtype) -> None:
        self.backend = NativeBackend(snapshot, device, dtype)

    def run(self, workload: Workload) -> None:
        """Do the work once. Raises RuntimeError if every answer ended too early, so that the time is of fewer steps."""
        prompts = random_prompts(workload, self.backend.config.vocab_size).tolist()
        answers = self.backend.generate(prompts, fixed_length(workload.new, **workload.options))
        longest = max(len(group[0].ids) for group in answers)
        if longest < workload.new:
            raise RuntimeError(f"the longest answer ended after {longest} of {workload.new} tokens: run it again.")


class TransformersEngine(BenchEngine):
    """GPT2LMHeadModel.generate, eager or with a static cache and a compiled step."""

    def __init__(
        self, snapshot: Snapshot, device: torch.device, dtype: torch.dtype, static_cache: bool = False
    ) -> None:
        self.name = "transformers static" if static_cache else "transformers"
        self._cache = {"cache_implementation": "static"} if static_cache else {}
        self._device = device
        self.model = _transformers_model(snapshot, device, dtype)

    def run(self, workload: Workload) -> None:
        """Do the work once."""
        ids = random_prompts(workload, self.model.config.vocab_size).to(self._device)
        length = {"max_new_tokens": workload.new, "min_new_tokens": workload.new}
        ends = {"eos_token_id": NO_END, "pad_token_id": 0}
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), **length, **ends, **self._cache, **workload.options
        )


def random_prompts(workload: Workload, vocab_size: int) -> torch.Tensor:
    """Random ids above the special tokens: [rows, prompt] int64 on the CPU."""
    return torch.randint(4, vocab_size, (workload.rows, workload.prompt))


def fixed_length(new: int, **options: Any) -> GenerationOptions:
    """Options of the native backend for answers of exactly `new` tokens."""
    return GenerationOptions.from_layers({"max_new_tokens": new, "eos_token_id": NO_END, **options})


def release_memory() -> None:
    """Give the memory of engines that are gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _transformers_model(snapshot: Snapshot, device: torch.device, dtype: torch.dtype) -> Any:
    if has_random_weights(snapshot):
        return _random_transformers_model(snapshot.config, device, dtype)
    from modelscope_polylm.backends.transformers.backend import TransformersBackend

    return TransformersBackend(snapshot, device, dtype).model


def _random_transformers_model(config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> Any:
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
