"""What `polylm bench` measures: workloads, and snapshots in a published shape with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.quantization import Weight, quantize
from modelscope_polylm.network.weights import Change, WeightFiles, declared_shapes, format_of
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1}
BEAMS: Mapping[str, Any] = {"do_sample": False, "num_beams": 4, "early_stopping": True}
SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.02}

CONTEXT_UNIT = "ms/token"
"""Unit of the points that are drawn against the length of the context: the time of a further token."""
ROWS_UNIT = "tokens/s"
"""Unit of the points that are drawn against the number of rows."""

SHAPES = {
    "13b": {"n_layer": 40, "n_head": 40, "n_embd": 5120, "vocab_size": 256000, "n_positions": 2048},
    "1.7b": {"n_layer": 24, "n_head": 16, "n_embd": 2048, "vocab_size": 256000, "n_positions": 2048},
    "0.3b": {"n_layer": 10, "n_head": 12, "n_embd": 1536, "vocab_size": 32000, "n_positions": 2048},
    "small": {"n_layer": 2, "n_head": 2, "n_embd": 256, "vocab_size": 4000, "n_positions": 2048},
}
"""Name to keys of config.json; '0.3b' is for slow devices, 'small' for trying the benchmark itself."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """`rows` prompts of `prompt` tokens, each continued by exactly `new` tokens."""

    name: str
    rows: int
    prompt: int
    new: int
    options: Mapping[str, Any]
    unit: str = "ms/step"

    @property
    def sequences(self) -> int:
        """Sequences in a decode step: every beam of every prompt."""
        return self.rows * int(self.options.get("num_beams", 1))

    def value(self, seconds: float) -> float:
        """The wall time of one call in the workload's unit: ms/step, ms/token, tokens/s or ms."""
        if self.unit == ROWS_UNIT:
            return self.rows * self.new / seconds
        return seconds * 1e3 / {"ms/step": self.new, CONTEXT_UNIT: self.new - 1, "ms": 1}[self.unit]

    def uncounted(self) -> Workload | None:
        """The part whose time is taken off: the first token where only further ones count."""
        return dataclasses.replace(self, new=1) if self.unit == CONTEXT_UNIT else None


WORKLOADS = (
    Workload("greedy, 1 row, 32 + 128", 1, 32, 128, GREEDY),
    Workload("4 beams, 1 row, 32 + 128", 1, 32, 128, BEAMS),
    Workload("sampling, 1 row, 32 + 128", 1, 32, 128, SAMPLING),
    Workload("4 beams, 1 row, 1800 + 64", 1, 1800, 64, BEAMS),
    Workload("greedy, 16 rows, 128 + 128", 16, 128, 128, GREEDY, ROWS_UNIT),
    Workload("greedy, 64 rows, 128 + 128", 64, 128, 128, GREEDY, ROWS_UNIT),
    Workload("4 beams, 16 rows, 128 + 64", 16, 128, 64, BEAMS),
    Workload("prefill, 1 row, 1920 tokens", 1, 1920, 1, GREEDY, "ms"),
    Workload("greedy, 1 row, 128 + 128", 1, 128, 128, GREEDY, ROWS_UNIT),
    Workload("greedy, 4 rows, 128 + 128", 4, 128, 128, GREEDY, ROWS_UNIT),
    Workload("greedy, 1 row, 32 + 33", 1, 32, 33, GREEDY, CONTEXT_UNIT),
    Workload("greedy, 1 row, 512 + 33", 1, 512, 33, GREEDY, CONTEXT_UNIT),
    Workload("greedy, 1 row, 1024 + 33", 1, 1024, 33, GREEDY, CONTEXT_UNIT),
    Workload("greedy, 1 row, 1800 + 33", 1, 1800, 33, GREEDY, CONTEXT_UNIT),
)


def shape_config(name: str) -> PolyLMConfig:
    """The network sizes of a published shape."""
    return PolyLMConfig.from_dict({"model_type": "gpt2", "activation_function": "gelu_fast", **SHAPES[name]})


class RandomWeights(WeightFiles):
    """Weights without files: `load` draws every declared tensor from a normal distribution of deviation 0.02."""

    def __init__(self) -> None:
        self.files = []

    def load(self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Name to tensor, in the shapes of `declared_shapes`."""
        return dict(self._drawn(config, device, dtype))

    def load_quantized(
        self,
        config: PolyLMConfig,
        device: torch.device,
        dtype: torch.dtype,
        quantization: str,
        change: Change | None = None,
    ) -> dict[str, Weight]:
        """The same tensors, each quantised after it was drawn."""
        weights: dict[str, Weight] = {}
        for name, tensor in self._drawn(config, device, dtype):
            chosen = format_of(name, quantization)
            weights[name] = quantize(tensor, chosen, dtype) if chosen else tensor
        return weights

    def _drawn(
        self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in declared_shapes(config).items():
            yield name, torch.empty(shape, device=device, dtype=dtype).normal_(0, 0.02)


class SizeOnlyTokenizer:
    """Bounds the ids that are generated; no text is read or written."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


def random_snapshot(shape: str, folder: Path | None = None) -> Snapshot:
    """A snapshot in a published shape, with random weights; `folder` is what it says of itself."""
    config = shape_config(shape)
    tokenizer = cast(PolyLMTokenizer, SizeOnlyTokenizer(config.vocab_size))
    return Snapshot(folder or Path(shape), config, tokenizer, RandomWeights(), None, FORMATS["base"], {})


def has_random_weights(snapshot: Snapshot) -> bool:
    """Whether a snapshot is one of `random_snapshot`, so that every engine draws weights of its own."""
    return isinstance(snapshot.weight_files, RandomWeights)
