"""Decode attention: the new token of each row attends to itself and to everything that the row has cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import choose_attention
from modelscope_polylm.network.kernels.dispatch import uses_triton

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import AttentionConfig

MAX_GROUP = 16
"""Most rows that may share the reading of their prompt."""

GATHER_ELEMENTS = 1 << 14
"""On a CPU, rows with fewer cached elements than this are cheaper to gather together than to run one by one."""


def decode_attention_reference(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, rows: Tensor, lengths: Tensor,
    prompt_lengths: Tensor, groups: Tensor,
) -> Tensor:  # fmt: skip
    """Compute `decode_attention` in plain torch; rows that share a prompt read it once each."""
    # qkv: [n, 3D], caches: [H, S, head_dim], slot_table: [R, T], rows: [n], groups: [m, 2] -> [n, D]
    query, key, value = qkv.view(len(qkv), 3, len(key_cache), -1).unbind(1)
    table, used_lengths = slot_table[rows], lengths[rows]
    new = table.gather(1, used_lengths[:, None].long())[:, 0].long()
    if qkv.is_cuda or int(groups[:, 1].sum()) < len(qkv):
        source = _rows_in_groups(groups, len(qkv))
        new, key, value = new[source], key[source], value[source]
    key_cache.index_copy_(1, new, key.transpose(0, 1))
    value_cache.index_copy_(1, new, value.transpose(0, 1))
    # on CUDA, reading the longest length would make the host wait
    longest = slot_table.shape[1] if qkv.is_cuda else int(used_lengths.max()) + 1
    if not qkv.is_cuda and (len(qkv) == 1 or longest * key_cache[:, 0].numel() > GATHER_ELEMENTS):
        row_slots = [row[: length + 1] for row, length in zip(table, used_lengths.tolist(), strict=True)]
        attended = [_attend_row(query[i], key_cache, value_cache, slots) for i, slots in enumerate(row_slots)]
        return torch.stack(attended).view(len(qkv), -1)
    visible = torch.arange(longest, device=qkv.device) <= used_lengths[:, None]
    slots = torch.where(visible, table[:, :longest], 0)
    keys, values = key_cache[:, slots].transpose(0, 1), value_cache[:, slots].transpose(0, 1)
    out = F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=visible[:, None, None])
    return out.reshape(len(qkv), -1)


def decode_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, rows: Tensor, lengths: Tensor,
    prompt_lengths: Tensor, groups: Tensor, config: AttentionConfig | None = None,
) -> Tensor:  # fmt: skip
    """Store the new key and value of each row in the cache and attend to them and to everything cached before.

    Args:
        qkv: [n, 3D], query, key and value of the new tokens of n compact rows, each as heads of equal width.
        key_cache, value_cache: [H, S, head_dim], same dtype; written at slot_table[row, lengths[row]].
        slot_table: [R, T] int32, the slot of every position of every state row.
        rows: [n] int32, the state row of each compact row.
        lengths: [R] int32, positions cached before this call.
        prompt_lengths: [R] int32.
        groups: [m, 2] int32, (first compact row, size 1..16) of consecutive compact rows that share a prompt; size 0
            marks an unused entry. Rows of a group have equal lengths, equal prompt lengths and equal slots before
            the prompt length. Each compact row is in at most one group; for a row in none, nothing is stored and its
            result is undefined. A row's result does not depend on its group by a single bit.

    Returns:
        [n, D] in the dtype of qkv. Softmax in fp32, scale 1 / sqrt(head_dim).
    """
    # qkv: [n, 3D], caches: [H, S, head_dim], slot_table: [R, T], rows: [n], groups: [m, 2] -> [n, D]
    state = (slot_table, rows, lengths, prompt_lengths, groups)
    if not fits_kernels(key_cache) or not uses_triton(qkv, key_cache, value_cache, *state):
        return decode_attention_reference(qkv, key_cache, value_cache, *state)
    from modelscope_polylm.network.kernels.attention_triton import launch_decode_attention

    chosen = config or choose_attention(len(qkv), len(groups), len(key_cache), qkv.dtype, qkv.device)
    out = torch.empty(len(qkv), qkv.shape[1] // 3, dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):
        launch_decode_attention(qkv, key_cache, value_cache, *state, out, chosen)
    return out


def fits_kernels(cache: Tensor) -> bool:
    """Whether the kernels of attention know the head dimension of a cache [H, S, head_dim]."""
    head_dim = cache.shape[2]
    return 16 <= head_dim <= 256 and head_dim & (head_dim - 1) == 0


def cached(cache: Tensor, slots: Tensor) -> Tensor:
    """What a cache [H, S, head_dim] holds in some slots [L]: [H, L, head_dim], a view where the slots are a range."""
    # the ends are compared first, which rules out most other orders
    first, last = int(slots[0]), int(slots[-1])
    end = first + len(slots)
    if last == end - 1 and torch.equal(slots, torch.arange(first, end, dtype=slots.dtype, device=slots.device)):
        return cache[:, first:end]
    return cache[:, slots]


def _rows_in_groups(groups: Tensor, count: int) -> Tensor:
    # [m, 2] -> [count], each compact row that is in a group, and a used one in place of each that is not
    position = torch.arange(count, device=groups.device)
    first, size = groups.unbind(1)
    used = ((position[:, None] >= first) & (position[:, None] < first + size)).any(1)
    return torch.where(used, position, first[size.argmax()])


def _attend_row(query: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> Tensor:
    # query: [H, head_dim], slots: [L] -> [H, head_dim]
    keys, values = cached(key_cache, slots), cached(value_cache, slots)
    return F.scaled_dot_product_attention(query[None, :, None], keys[None], values[None])[0, :, 0]
