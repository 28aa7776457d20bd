"""Attention of whole prompts, whose keys and values it keeps in the cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import PrefillAttentionConfig, choose_prefill_attention
from modelscope_polylm.network.kernels.dispatch import uses_triton

Kept = tuple[Tensor, Tensor, Tensor]
"""slots [T] int64 of the positions, and the caches of keys and of values, each [H, S, head width]."""


def prefill_attention_reference(qkv: Tensor, prompts: int, heads: int, kept: Kept | None) -> Tensor:
    """Plain torch twin of `prefill_attention`."""
    # qkv: [T, 3D] -> [T, D]
    tokens, length = qkv.shape[0], qkv.shape[0] // prompts
    if kept is not None:
        slots, *caches = kept
        for new, cache in zip(qkv.view(tokens, 3, heads, -1).unbind(1)[1:], caches, strict=True):
            cache.index_copy_(1, slots, new.transpose(0, 1))
    query, key, value = qkv.view(prompts, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return mixed.transpose(1, 2).reshape(tokens, -1)


def prefill_attention(
    qkv: Tensor, prompts: int, heads: int, kept: Kept | None = None, config: PrefillAttentionConfig | None = None
) -> Tensor:
    """Each position of some prompts of one length attends to itself and to those before it in its prompt.

    qkv: [T, 3D], T = prompts * length: query, key and value as heads of equal width. Padding on the right of a prompt
        is seen by padding alone.
    kept: where keys and values go; of positions that share a slot any one may stay. None keeps nothing.
    Returns [T, D] in the dtype of qkv. Softmax in fp32, scale 1 / sqrt(head width).
    """
    # qkv: [T, 3D] -> [T, D]
    width = qkv.shape[1] // (3 * heads)
    supported = qkv.dtype != torch.float32 and 16 <= width <= 128 and width & (width - 1) == 0
    if not supported or not uses_triton(qkv, *(kept or ())):
        return prefill_attention_reference(qkv, prompts, heads, kept)
    from modelscope_polylm.network.kernels.prefill_attention_triton import launch_prefill_attention

    out = torch.empty(qkv.shape[0], heads * width, dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):
        launch_prefill_attention(qkv, prompts, heads, kept, out, config or choose_prefill_attention())
    return out
