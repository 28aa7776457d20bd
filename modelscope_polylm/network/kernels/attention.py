"""Attention of one new token for each row over its cached tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import AttentionConfig, choose_attention
from modelscope_polylm.network.kernels.dispatch import uses_triton

MAX_GROUP = 16


def decode_attention_reference(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, lengths: Tensor, prompt_lengths: Tensor,
    group: int,
) -> Tensor:  # fmt: skip
    """Plain torch twin of `decode_attention`: gathers every row's keys and values."""
    # qkv: [R, 3D], caches: [H, S, head], slot_table: [R, T], lengths: [R] -> [R, D]
    rows, heads = qkv.shape[0], key_cache.shape[0]
    query, key, value = qkv.view(rows, 3, heads, -1).unbind(1)
    # on CUDA the longest row would have to be read back to the host
    limit = slot_table.shape[1] if qkv.is_cuda else int(lengths.max()) + 1
    new = slot_table.gather(1, lengths[:, None].long()).squeeze(1).long()
    key_cache[:, new] = key.transpose(0, 1)
    value_cache[:, new] = value.transpose(0, 1)
    seen = torch.arange(limit, device=qkv.device) <= lengths[:, None]
    slots = torch.where(seen, slot_table[:, :limit], 0).long()
    keys, values = key_cache[:, slots].transpose(0, 1), value_cache[:, slots].transpose(0, 1)
    out = F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=seen[:, None, None])
    return out.reshape(rows, -1)


def decode_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, lengths: Tensor, prompt_lengths: Tensor,
    group: int, config: AttentionConfig | None = None,
) -> Tensor:  # fmt: skip
    """Stores each row's new key and value in the cache and attends to them and to all that the row has cached.

    qkv: [R, 3D], query, key and value of the new tokens, each as heads of equal width.
    key_cache, value_cache: [H, S, head width], same dtype; written at slot slot_table[r, lengths[r]].
    slot_table: [R, T] int32, the slot of every position of a row.
    lengths: [R] int32, positions cached before this call.
    prompt_lengths: [R] int32; rows come in groups of `group` (the beams of one prompt) with equal lengths and equal
        prompt lengths, whose slots of positions before the prompt length are the same and are read once.
    Returns [R, D] in the dtype of qkv. Softmax in fp32, scale 1 / sqrt(head width).
    """
    # qkv: [R, 3D], caches: [H, S, head], slot_table: [R, T], lengths, prompt_lengths: [R] -> [R, D]
    width = key_cache.shape[2]
    supported = group <= MAX_GROUP and 16 <= width <= 256 and width & (width - 1) == 0
    if not supported or not uses_triton(qkv, key_cache, value_cache, slot_table, lengths, prompt_lengths):
        return decode_attention_reference(qkv, key_cache, value_cache, slot_table, lengths, prompt_lengths, group)
    from modelscope_polylm.network.kernels.attention_triton import launch_attention

    chosen = config or choose_attention(qkv.shape[0] // group, key_cache.shape[0], group, qkv.dtype, qkv.device)
    out = torch.empty(qkv.shape[0], qkv.shape[1] // 3, dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):
        launch_attention(qkv, key_cache, value_cache, slot_table, lengths, prompt_lengths, group, out, chosen)
    return out
