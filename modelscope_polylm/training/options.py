"""Options of fine-tuning: each is described, typed and bounded here, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modelscope_polylm.errors import OptionError, suggestion
from modelscope_polylm.generation.options import checked_value, option

MOST_TOKENS = 2048
"""Length of PolyLM's training rows, which is also its context."""
LEARNING_RATES = {"full": 1e-5, "lora": 1e-4}
"""The paper's for MultiAlpaca (table 3), where all weights learn; ten times that for the few weights of LoRA."""
LARGE_HIDDEN_SIZE = 5120
BATCH_ROWS = {True: 64, False: 32}
"""Rows of a step for 13B and for smaller models (table 3)."""


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """A checked set of options, built with `from_dict`. What is None is chosen for the model by `for_model`."""

    method: str = option(
        "lora", "What learns: a low-rank adapter of all projections, or all weights.", choices=("lora", "full")
    )
    lora_rank: int = option(8, "Rank of the adapter.", minimum=1, maximum=1024)
    lora_alpha: float = option(16.0, "The adapter is scaled by alpha / rank.", above=0.0)
    lora_dropout: float = option(0.0, "Share of the adapter's inputs dropped in training.", minimum=0.0, maximum=0.99)
    quantization: str | None = option(
        None, "Hold the frozen weights in fewer bits while an adapter learns (QLoRA).", choices=("int8", "int4")
    )
    learning_rate: float | None = option(
        None, "Peak learning rate; 1e-5, the paper's, if all weights learn, and 1e-4 for LoRA.", above=0.0
    )
    epochs: float = option(1.0, "How often the data are read.", above=0.0)
    steps: int | None = option(None, "Optimizer steps, instead of epochs.", minimum=1)
    batch_tokens: int | None = option(
        None, "Tokens of an optimizer step; 64 rows for 13B and 32 for smaller models, as in the paper.", minimum=1
    )
    device_rows: int = option(1, "Rows that a device computes at once; a step takes several such batches.", minimum=1)
    length: int | None = option(None, "Tokens of a row; the context of the model, at most 2,048.", minimum=16)
    packing: str = option(
        "isolated",
        "Several examples fill a row: isolated, so that none sees another; leaky, as in DAMO's scripts; or none.",
        choices=("isolated", "leaky", "none"),
    )
    end_in_history: bool | None = option(
        None, "Put the end token after earlier answers; as the prompt format says if unset, which is no."
    )
    warmup: float = option(0.03, "Share of the steps in which the learning rate rises.", minimum=0.0, maximum=1.0)
    weight_decay: float = option(0.1, "Weight decay of AdamW; the paper's of pre-training.", minimum=0.0)
    residual: str = option(
        "float32",
        "Precision of the residual stream: float32, as PolyLM was trained, or that of the weights.",
        choices=("float32", "weights"),
    )
    checkpointing: bool | None = option(
        None,
        "Compute activations again in the backward pass, which saves memory: of all blocks, of none, or, if unset, of "
        "as few as the device's memory asks for.",
    )
    evaluation: float = option(0.0, "Share of the records held out to measure the loss.", minimum=0.0, maximum=0.5)
    evaluate_every: int = option(100, "Steps between evaluations.", minimum=1)
    save_every: int = option(100, "Steps between checkpoints; the last two are kept.", minimum=1)
    log_every: int = option(10, "Steps between reports.", minimum=1)
    seed: int = option(0, "Of the order of rows, the adapter's start and dropout.", minimum=0)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> TrainingOptions:
        """Check options; None means "not given". Raises OptionError."""
        fields = {field.name: field for field in training_fields()}
        for name in given:
            if name not in fields:
                raise OptionError(f"Fine-tuning has no option {name!r}: {suggestion(name, fields)}")
        values = {name: checked_value(fields[name], value) for name, value in given.items() if value is not None}
        options = cls(**values)
        if options.quantization is not None and options.method != "lora":
            raise OptionError(
                "quantization holds frozen weights: with method='full' all of them learn, so leave it out."
            )
        return options

    def for_model(self, hidden_size: int, positions: int) -> TrainingOptions:
        """The options with what was left open, for a model of these sizes. Raises OptionError for a length too large.

        Args:
            hidden_size, positions: of the model.
        """
        length = self.length or min(positions, MOST_TOKENS)
        if length > positions:
            raise OptionError(f"length={length} is more than the {positions} tokens of the model's context.")
        rows = BATCH_ROWS[hidden_size >= LARGE_HIDDEN_SIZE]
        return dataclasses.replace(
            self,
            length=length,
            learning_rate=self.learning_rate or LEARNING_RATES[self.method],
            batch_tokens=self.batch_tokens or rows * length,
        )

    def micro_batches(self, processes: int) -> int:
        """Batches of `device_rows` rows that each process computes for a step of about `batch_tokens`, at least one."""
        return max(1, round((self.batch_tokens or 0) / ((self.length or 1) * self.device_rows * processes)))


def training_fields() -> tuple[dataclasses.Field[Any], ...]:
    """The declared options: name, type, default, and metadata with `help` and bounds."""
    return dataclasses.fields(TrainingOptions)
