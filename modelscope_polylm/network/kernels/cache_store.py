"""Keeps the keys and values of whole prompts in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.network.kernels.dispatch import uses_triton


def store_keys_values_reference(qkv: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    """Plain torch twin of `store_keys_values`."""
    # qkv: [T, 3D], slots: [T] int64, caches: [H, S, head]
    _, key, value = qkv.view(qkv.shape[0], 3, key_cache.shape[0], -1).permute(1, 2, 0, 3)
    key_cache.index_copy_(1, slots, key)
    value_cache.index_copy_(1, slots, value)


def store_keys_values(qkv: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    """Writes each token's key and value to its slot; of tokens that share a slot any one may stay.

    qkv: [T, 3D], query, key and value of each token, as heads of equal width.
    slots: [T] int64.
    key_cache, value_cache: [H, S, head width], same dtype.
    """
    # qkv: [T, 3D], slots: [T] int64, caches: [H, S, head]
    if not uses_triton(qkv, slots, key_cache, value_cache):
        store_keys_values_reference(qkv, slots, key_cache, value_cache)
        return
    from modelscope_polylm.network.kernels.cache_store_triton import launch_store

    with torch.cuda.device_of(qkv):
        launch_store(qkv, slots, key_cache, value_cache)
