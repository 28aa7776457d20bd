"""Prefill attention: the tokens of some segments attend, through the cache, to everything before them in their rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.attention import cached, fits_kernels
from modelscope_polylm.network.kernels.configs import choose_prefill_attention
from modelscope_polylm.network.kernels.dispatch import uses_triton

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import PrefillAttentionConfig

TILE = 64
"""Most tokens of a tile."""


class Segment(NamedTuple):
    """Consecutive tokens of one row: where they are in qkv, and their positions in the row."""

    row: int
    first: int
    position: int
    tokens: int


def prefill_attention_reference(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, tiles: Tensor
) -> Tensor:
    """Compute `prefill_attention` in plain torch, one segment after the other; reads the tiles on the host."""
    # qkv: [total, 3D], caches: [H, S, head_dim], slot_table: [R, T], tiles: [m, 4] -> [total, D]
    query, key, value = qkv.view(len(qkv), 3, len(key_cache), -1).permute(1, 2, 0, 3)
    out = torch.zeros_like(query)
    segments = list(_segments(tiles))
    for row, first, position, count in segments:
        slots, tokens = slot_table[row, position : position + count], slice(first, first + count)
        key_cache.index_copy_(1, slots.long(), key[:, tokens])
        value_cache.index_copy_(1, slots.long(), value[:, tokens])
    for row, first, position, count in segments:
        tokens = slice(first, first + count)
        if position == 0:
            attended = _causal(query[:, tokens], key[:, tokens], value[:, tokens])
        else:
            slots = slot_table[row, : position + count]
            attended = _causal(query[:, tokens], cached(key_cache, slots), cached(value_cache, slots))
        out[:, tokens] = attended
    return out.transpose(0, 1).reshape(len(qkv), -1)


def prefill_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, tiles: Tensor,
    config: PrefillAttentionConfig | None = None,
) -> Tensor:  # fmt: skip
    """Let each token attend to all positions up to its own, and store the keys and values of all tokens in the cache.

    Args:
        qkv: [total, 3D], query, key and value of the tokens of several segments, packed without padding.
        key_cache, value_cache: [H, S, head_dim], same dtype; written at slot_table[row, position], read for the
            positions before the row's segment.
        slot_table: [R, T] int32, the slot of every position of every state row.
        tiles: [m, 4] int32, (state row, index of the tile's first token in qkv, position of that token, tokens
            0..64); 0 tokens mark an unused entry. All tiles of a row continue each other: one segment a row.

    Returns:
        [total, D] in the dtype of qkv; undefined for tokens in no tile. Softmax in fp32, scale 1 / sqrt(head_dim).
        A token's result does not depend by a single bit on how its row is cut into calls; decoding it gives the same.
    """
    # qkv: [total, 3D], caches: [H, S, head_dim], slot_table: [R, T], tiles: [m, 4] -> [total, D]
    arguments = (qkv, key_cache, value_cache, slot_table, tiles)
    if not fits_kernels(key_cache) or not uses_triton(*arguments):
        return prefill_attention_reference(*arguments)
    from modelscope_polylm.network.kernels.prefill_attention_triton import launch_prefill_attention

    out = torch.empty(len(qkv), qkv.shape[1] // 3, dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):
        launch_prefill_attention(*arguments, out, TILE, config or choose_prefill_attention(qkv.dtype))
    return out


def _segments(tiles: Tensor) -> Iterator[Segment]:
    # tiles: [m, 4]; tiles that continue each other are one segment
    current: Segment | None = None
    for row, first, position, count in tiles.tolist():
        if count == 0:
            continue
        if current is not None:
            end = (current.row, current.first + current.tokens, current.position + current.tokens)
            if end == (row, first, position):
                current = current._replace(tokens=current.tokens + count)
                continue
            yield current
        current = Segment(row, first, position, count)
    if current is not None:
        yield current


def _causal(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    # query: [H, count, head_dim], keys, values: [H, length, head_dim], of which the last `count` are the queries' own
    count, length = query.shape[1], keys.shape[1]
    mask = None
    if count < length:
        position = torch.arange(length, device=query.device)
        mask = position <= position[length - count :, None]
    out = F.scaled_dot_product_attention(query[None], keys[None], values[None], mask, is_causal=mask is None)
    return out[0]
