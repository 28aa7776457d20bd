"""What is measured: the pieces of work of the benchmark's table, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1}
BEAMS: Mapping[str, Any] = {"do_sample": False, "num_beams": 4, "early_stopping": True}
SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.02}


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
        """The wall time of one call in the work's unit: ms/step, tokens/s or ms."""
        if self.unit == "tokens/s":
            return self.rows * self.new / seconds
        return seconds * 1e3 / (self.new if self.unit == "ms/step" else 1)


WORKS = (
    Work("greedy, 1 row, 32 + 128", 1, 32, 128, GREEDY),
    Work("4 beams, 1 row, 32 + 128", 1, 32, 128, BEAMS),
    Work("sampling, 1 row, 32 + 128", 1, 32, 128, SAMPLING),
    Work("4 beams, 1 row, 1800 + 64", 1, 1800, 64, BEAMS),
    Work("greedy, 16 rows, 128 + 128", 16, 128, 128, GREEDY, "tokens/s"),
    Work("greedy, 64 rows, 128 + 128", 64, 128, 128, GREEDY, "tokens/s"),
    Work("4 beams, 16 rows, 128 + 64", 16, 128, 64, BEAMS),
    Work("prefill, 1 row, 1920 tokens", 1, 1920, 1, GREEDY, "ms"),
)
