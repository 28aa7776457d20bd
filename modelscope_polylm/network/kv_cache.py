"""The KV cache: one pool of slots. Rows find their tokens through a slot table, so nothing is ever copied."""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.network.config import PolyLMConfig

SCRATCH_SLOT = 0
"""Takes what padding positions write; no row reads it."""


class KVCache:
    """Keys and values of `slots` tokens for every layer.

    Args:
        config: the network's sizes.
        slots: how many tokens fit, the scratch slot included.
        device, dtype: where and how they are kept.
    """

    def __init__(self, config: PolyLMConfig, slots: int, device: torch.device, dtype: torch.dtype):
        shape = (config.layers, config.heads, slots, config.head_dim)
        self.slots = slots
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [heads, slots, head_width]."""
        return self._keys[layer], self._values[layer]


def bytes_per_slot(config: PolyLMConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the cache (819,200 for 13B in bf16)."""
    return 2 * config.layers * config.heads * config.head_dim * dtype.itemsize
