"""The KV cache: keys and values in slots. Rows find their tokens through a slot table, so nothing is ever copied."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modelscope_polylm.network.config import PolyLMConfig

SCRATCH_SLOT = 0
"""Belongs to no position; it stays finite, because masked positions may read it."""
CACHE_DTYPES = {"int8": torch.int8}
"""By the name that people give, what the cache can hold in place of the network's own dtype."""
SCALE_DTYPE = torch.bfloat16


class LayerCache(NamedTuple):
    """Keys and values of one layer.

    Attributes:
        keys, values: each [heads, slots, head_dim].
        scales: [2, heads, slots] bf16, of keys and values that are int8; None where they are plain numbers.
    """

    keys: Tensor
    values: Tensor
    scales: Tensor | None = None


class KVCache:
    """Keys and values of `slots` tokens for every layer.

    In int8 each key and value of a head has a scale of its own: its largest number over 127.

    Args:
        config: the network's sizes.
        slots: how many tokens fit, the scratch slot included.
        device, dtype: where and how they are kept.
    """

    def __init__(self, config: PolyLMConfig, slots: int, device: torch.device, dtype: torch.dtype):
        self.slots = slots
        shape = (2, config.heads, slots, config.head_dim)
        self._layers = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        scaled = config.layers if dtype == torch.int8 else 0
        self._scales = [torch.empty(shape[:3], device=device, dtype=SCALE_DTYPE) for _ in range(scaled)]
        for tensor in [*self._layers, *self._scales]:
            tensor[:, :, SCRATCH_SLOT] = 0

    def layer(self, layer: int) -> LayerCache:
        """Keys and values of a layer."""
        keys, values = self._layers[layer].unbind()
        return LayerCache(keys, values, self._scales[layer] if self._scales else None)

    def grow(self, slots: int) -> None:
        """Make room for more slots, layer by layer, so that hardly more than the new memory is needed at once."""
        for tensors in (self._layers, self._scales):
            for index, old in enumerate(tensors):
                new = torch.empty(2, old.shape[1], slots, *old.shape[3:], device=old.device, dtype=old.dtype)
                new[:, :, : self.slots] = old
                tensors[index] = new
        self.slots = slots


def bytes_per_slot(config: PolyLMConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the cache (819,200 for 13B in bf16)."""
    scale = SCALE_DTYPE.itemsize if dtype == torch.int8 else 0
    return 2 * config.layers * config.heads * (config.head_dim * dtype.itemsize + scale)
