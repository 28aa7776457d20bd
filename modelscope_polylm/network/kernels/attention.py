"""Decode attention: the new token of each row attends to itself and to everything that the row has cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
    prompt_lengths: Tensor, groups: Tensor, scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute `decode_attention` in plain torch; rows that share a prompt read it once each."""
    # qkv: [n, 3D], caches: [H, S, head_dim], slot_table: [R, T], rows: [n], groups: [m, 2] -> [n, D]
    query, key, value = qkv.view(len(qkv), 3, len(key_cache), -1).unbind(1)
    table, used_lengths = slot_table[rows], lengths[rows]
    new = table.gather(1, used_lengths[:, None].long())[:, 0].long()
    if qkv.is_cuda or int(groups[:, 1].sum()) < len(qkv):
        source = _rows_in_groups(groups, len(qkv))
        new, key, value = new[source], key[source], value[source]
    caches = head_caches(key_cache, value_cache, scales, qkv.dtype)
    for cache, numbers in zip(caches, (key, value), strict=True):
        cache.write(new, numbers.transpose(0, 1))
    # on CUDA, reading the longest length would make the host wait
    longest = slot_table.shape[1] if qkv.is_cuda else int(used_lengths.max()) + 1
    if not qkv.is_cuda and (len(qkv) == 1 or longest * key_cache[:, 0].numel() > GATHER_ELEMENTS):
        row_slots = [row[: length + 1] for row, length in zip(table, used_lengths.tolist(), strict=True)]
        attended = [_attend_row(query[i], caches, slots) for i, slots in enumerate(row_slots)]
        return torch.stack(attended).view(len(qkv), -1)
    visible = torch.arange(longest, device=qkv.device) <= used_lengths[:, None]
    slots = torch.where(visible, table[:, :longest], 0)
    keys, values = (cache.read(slots).transpose(0, 1) for cache in caches)
    out = F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=visible[:, None, None])
    return out.reshape(len(qkv), -1)


def decode_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, rows: Tensor, lengths: Tensor,
    prompt_lengths: Tensor, groups: Tensor, config: AttentionConfig | None = None, scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Store the new key and value of each row in the cache and attend to them and to everything cached before.

    Args:
        qkv: [n, 3D], query, key and value of the new tokens of n compact rows, each as heads of equal width.
        key_cache, value_cache: [H, S, head_dim], of that dtype or int8; written at slot_table[row, lengths[row]].
        slot_table: [R, T] int32, the slot of every position of every state row.
        rows: [n] int32, the state row of each compact row.
        lengths: [R] int32, positions cached before this call.
        prompt_lengths: [R] int32.
        groups: [m, 2] int32, (first compact row, size 1..16) of consecutive compact rows that share a prompt; size 0
            marks an unused entry. Rows of a group have equal lengths, equal prompt lengths and equal slots before
            the prompt length. Each compact row is in at most one group; for a row in none, nothing is stored and its
            result is undefined. A row's result does not depend on its group by a single bit.
        config: overrides the choice of block shapes.
        scales: [2, H, S] bf16, of the keys and values where the caches are int8: written and read with them.

    Returns:
        [n, D] in the dtype of qkv. Softmax in fp32, scale 1 / sqrt(head_dim).
    """
    # qkv: [n, 3D], caches: [H, S, head_dim], slot_table: [R, T], rows: [n], groups: [m, 2] -> [n, D]
    state = (slot_table, rows, lengths, prompt_lengths, groups)
    if not fits_kernels(key_cache) or not uses_triton(qkv, key_cache, value_cache, *state):
        return decode_attention_reference(qkv, key_cache, value_cache, *state, scales)
    from modelscope_polylm.network.kernels.attention_triton import launch_decode_attention

    is_int8 = scales is not None
    chosen = config or choose_attention(len(qkv), len(groups), len(key_cache), qkv.dtype, qkv.device, is_int8)
    out = torch.empty(len(qkv), qkv.shape[1] // 3, dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):
        launch_decode_attention(qkv, key_cache, value_cache, scales, *state, out, chosen)
    return out


def fits_kernels(cache: Tensor) -> bool:
    """Whether the kernels of attention know the head dimension of a cache [H, S, head_dim]."""
    head_dim = cache.shape[2]
    return 16 <= head_dim <= 256 and head_dim & (head_dim - 1) == 0


class HeadCache(NamedTuple):
    """Keys or values in plain torch.

    Attributes:
        numbers: [H, S, head_dim], of `dtype` or int8.
        scales: [H, S] bf16 where the numbers are int8.
        dtype: of what is read and written.
    """

    numbers: Tensor
    scales: Tensor | None
    dtype: torch.dtype

    def write(self, slots: Tensor, numbers: Tensor) -> None:
        """Put numbers [H, L, head_dim] into slots [L] int64."""
        # numbers: [H, L, head_dim]
        if self.scales is not None:
            numbers, scales = rounded(numbers)
            self.scales.index_copy_(1, slots, scales)
        self.numbers.index_copy_(1, slots, numbers)

    def read(self, slots: Tensor | slice) -> Tensor:
        """What is in some slots of any shape: [H, *slots, head_dim], a view of plain numbers in a slice."""
        # -> [H, ..., head_dim]
        numbers = self.numbers[:, slots]
        return numbers if self.scales is None else _plain(numbers, self.scales[:, slots], self.dtype)

    def read_row(self, slots: Tensor) -> Tensor:
        """What is in the slots [L] of a row: [H, L, head_dim]."""
        # the ends are compared first, which rules out most other orders
        first, last = int(slots[0]), int(slots[-1])
        end = first + len(slots)
        if last == end - 1 and torch.equal(slots, torch.arange(first, end, dtype=slots.dtype, device=slots.device)):
            return self.read(slice(first, end))
        return self.read(slots)


def head_caches(
    key_cache: Tensor, value_cache: Tensor, scales: Tensor | None, dtype: torch.dtype
) -> tuple[HeadCache, HeadCache]:
    """The caches of `decode_attention` for plain torch."""
    key_scales, value_scales = (None, None) if scales is None else scales.unbind()
    return HeadCache(key_cache, key_scales, dtype), HeadCache(value_cache, value_scales, dtype)


def rounded(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [..., head_dim] as an int8 cache holds them: int8, and a scale [...] bf16.

    A scale is the largest number over 127, rounded up: products of it and 8 bits are then exact in fp32.
    """
    # numbers: [..., head_dim]
    share = numbers.float().abs().amax(-1) * (1 / 127)
    scales = (share.view(torch.int32) + 0xFFFF & -0x10000).view(torch.float32)
    factor = 1 / torch.where(scales == 0, 1.0, scales)
    return (numbers.float() * factor[..., None]).round().to(torch.int8), scales.to(torch.bfloat16)


def _plain(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    # numbers: [..., head_dim] int8, scales: [...] bf16 -> [..., head_dim]
    return (numbers.float() * scales.float()[..., None]).to(dtype)


def _rows_in_groups(groups: Tensor, count: int) -> Tensor:
    # [m, 2] -> [count], each compact row that is in a group, and a used one in place of each that is not
    position = torch.arange(count, device=groups.device)
    first, size = groups.unbind(1)
    used = ((position[:, None] >= first) & (position[:, None] < first + size)).any(1)
    return torch.where(used, position, first[size.argmax()])


def _attend_row(query: Tensor, caches: tuple[HeadCache, HeadCache], slots: Tensor) -> Tensor:
    # query: [H, head_dim], slots: [L] -> [H, head_dim]
    keys, values = (cache.read_row(slots) for cache in caches)
    return F.scaled_dot_product_attention(query[None, :, None], keys[None], values[None])[0, :, 0]
