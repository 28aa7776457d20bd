"""The KV cache: keys and values in slots. Rows find their tokens through a slot table, so nothing is ever copied."""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.network.config import PolyLMConfig

SCRATCH_SLOT = 0
"""Belongs to no position; it stays finite, because masked positions may read it."""


class KVCache:
    """Keys and values of `slots` tokens for every layer.

    Args:
        config: the network's sizes.
        slots: how many tokens fit, the scratch slot included.
        device, dtype: where and how they are kept.
    """

    def __init__(self, config: PolyLMConfig, slots: int, device: torch.device, dtype: torch.dtype):
        self.slots = slots
        shape = (2, config.heads, slots, config.head_dim)
        self._layers = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        for layer in self._layers:
            layer[:, :, SCRATCH_SLOT] = 0

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [heads, slots, head_dim]."""
        keys, values = self._layers[layer].unbind()
        return keys, values

    def grow(self, slots: int) -> None:
        """Make room for more slots, layer by layer, so that hardly more than the new memory is needed at once."""
        self.slots = slots
        for index, old in enumerate(self._layers):
            new = torch.empty(2, old.shape[1], slots, old.shape[3], device=old.device, dtype=old.dtype)
            new[:, :, : old.shape[2]] = old
            self._layers[index] = new


def bytes_per_slot(config: PolyLMConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the cache (819,200 for 13B in bf16)."""
    return 2 * config.layers * config.heads * config.head_dim * dtype.itemsize
