"""Where and how large the kernels are measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PRODUCTS = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of a network."""

    layers: int
    heads: int
    head_width: int
    vocab: int

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    def product(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of a projection."""
        d = self.width
        return {"c_attn": (3 * d, d), "attn.c_proj": (d, d), "c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}[name]


SHAPES = {"13b": Shape(40, 40, 128, 256000), "1.7b": Shape(24, 16, 128, 256000), "tiny": Shape(2, 2, 32, 320)}


@dataclass(frozen=True)
class Setting:
    """Where and how large: `small` keeps what decides how a kernel is compiled and cuts the rest."""

    shape: Shape
    device: torch.device
    dtype: torch.dtype
    small: bool = False

    def random(self, *size: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        return torch.empty(*size, device=self.device, dtype=dtype or self.dtype).normal_(0, scale)

    def copies(self, size: int) -> range:
        """Copies of arguments of `size` bytes that make about 1 GB, far beyond the L2 cache."""
        return range(1 if self.small or self.device.type == "cpu" else max(2, min(40, -(-1_000_000_000 // size))))


def group_of(rows: int) -> int:
    """Rows that share a prompt: a few rows are the beams of one prompt."""
    return rows if 1 < rows <= 8 else 1
