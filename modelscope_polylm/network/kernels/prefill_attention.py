"""Prefill attention: the tokens of some segments attend, through the cache, to everything before them in their rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.attention import HeadCache, fits_kernels, head_caches
from modelscope_polylm.network.kernels.configs import choose_prefill_attention
from modelscope_polylm.network.kernels.dispatch import uses_triton
from modelscope_polylm.network.kv_cache import SCRATCH_SLOT

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import PrefillAttentionConfig

TILE = 64
"""Most tokens of a tile."""
PADDED = 16
"""In plain torch, segments whose tokens and lengths are equal in multiples of this run together."""
MOST_TOGETHER = 64
"""Most segments that run together in plain torch."""


class Segment(NamedTuple):
    """Consecutive tokens of one row: where they are in qkv, and their positions in the row."""

    row: int
    first: int
    position: int
    tokens: int

    @property
    def end(self) -> int:
        """Where the tokens after it are in qkv."""
        return self.first + self.tokens

    @property
    def length(self) -> int:
        """Tokens of its row up to its last one."""
        return self.position + self.tokens


def prefill_attention_reference(
    qkv: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_table: Tensor,
    tiles: Tensor,
    scales: Tensor | None = None,
) -> Tensor:
    """Compute `prefill_attention` in plain torch, segments of one length or so together; reads tiles on the host."""
    # qkv: [total, 3D], caches: [H, S, head_dim], slot_table: [R, T], tiles: [m, 5] -> [total, D]
    segments = sorted(_segments(tiles), key=lambda segment: segment.first)
    if not segments:
        return qkv.new_zeros(len(qkv), qkv.shape[1] // 3)
    query, key, value = qkv.view(len(qkv), 3, len(key_cache), -1).permute(1, 2, 0, 3)
    caches = head_caches(key_cache, value_cache, scales, qkv.dtype)
    tokens: Tensor | slice = slice(0, len(qkv))
    if sum(each.tokens for each in segments) < len(qkv):
        tokens = torch.cat([torch.arange(each.first, each.end) for each in segments]).to(qkv.device)
    slots = torch.cat([slot_table[each.row, each.position : each.length] for each in segments]).long()
    for cache, numbers in zip(caches, (key, value), strict=True):
        cache.write(slots, numbers[:, tokens])
    out = torch.zeros_like(query)
    for alike in _alike(segments):
        attend = _attend_alone if len(alike) == 1 else _attend_together
        attend(query, caches, slot_table, alike, out)
    return out.transpose(0, 1).reshape(len(qkv), -1)


def prefill_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, tiles: Tensor,
    config: PrefillAttentionConfig | None = None, scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Let each token attend to all positions up to its own, and store the keys and values of all tokens in the cache.

    Args:
        qkv: [total, 3D], query, key and value of the tokens of several segments, packed without padding.
        key_cache, value_cache: [H, S, head_dim], of that dtype or int8; written at slot_table[row, position], read for
            the positions before the row's segment.
        slot_table: [R, T] int32, the slot of every position of every state row.
        tiles: [m, 5] int32, (state row, index of the tile's first token in qkv, position of that token, tokens
            0..64, position of its segment's first token); 0 tokens mark an unused entry. All tiles of a row continue
            each other: one segment a row.
        config: overrides the choice of block shapes.
        scales: [2, H, S] bf16, of the keys and values where the caches are int8: written and read with them. Keys and
            values are then seen as the cache holds them, and the kernels write them so into qkv, too.

    Returns:
        [total, D] in the dtype of qkv; undefined for tokens in no tile. Softmax in fp32, scale 1 / sqrt(head_dim).
        A token's result does not depend by a single bit on how its row is cut into calls; decoding it gives the same.
    """
    # qkv: [total, 3D], caches: [H, S, head_dim], slot_table: [R, T], tiles: [m, 5] -> [total, D]
    arguments = (qkv, key_cache, value_cache, slot_table, tiles)
    if not fits_kernels(key_cache) or not uses_triton(*arguments):
        return prefill_attention_reference(*arguments, scales)
    from modelscope_polylm.network.kernels.prefill_attention_triton import launch_prefill_attention

    out = torch.empty(len(qkv), qkv.shape[1] // 3, dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):
        chosen = config or choose_prefill_attention(qkv.dtype, scales is not None)
        launch_prefill_attention(qkv, key_cache, value_cache, scales, slot_table, tiles, out, TILE, chosen)
    return out


def _segments(tiles: Tensor) -> Iterator[Segment]:
    # tiles: [m, 5]; tiles that continue each other are one segment
    current: Segment | None = None
    for row, first, position, count, _ in tiles.tolist():
        if count == 0:
            continue
        if current is not None:
            if (current.row, current.end, current.length) == (row, first, position):
                current = current._replace(tokens=current.tokens + count)
                continue
            yield current
        current = Segment(row, first, position, count)
    if current is not None:
        yield current


def _alike(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    # segments that cost little more when they are padded to one shape than one by one
    def shape(segment: Segment) -> tuple[int, int]:
        return -(-segment.tokens // PADDED), -(-segment.length // PADDED)

    for _, same in itertools.groupby(sorted(segments, key=shape), shape):
        while part := list(itertools.islice(same, MOST_TOGETHER)):
            yield part


def _attend_alone(
    query: Tensor, caches: tuple[HeadCache, HeadCache], slot_table: Tensor, segments: Sequence[Segment], out: Tensor
) -> None:
    # query, out: [H, total, head_dim], slot_table: [R, T]; one segment, whose tokens are views
    (own,) = segments
    tokens = slice(own.first, own.end)
    keys, values = (cache.read_row(slot_table[own.row, : own.length])[None] for cache in caches)
    out[:, tokens] = _causal(query[None, :, tokens], keys, values, [own.position])[0]


def _attend_together(
    query: Tensor, caches: tuple[HeadCache, HeadCache], slot_table: Tensor, segments: Sequence[Segment], out: Tensor
) -> None:
    # query, out: [H, total, head_dim], slot_table: [R, T]
    row, first, position, count = torch.tensor(segments, device=query.device).unbind(1)
    length = (position + count)[:, None]
    offset = torch.arange(max(each.tokens for each in segments), device=query.device)
    key_position = torch.arange(max(each.length for each in segments), device=query.device)
    # a slot that no token has may hold anything, also NaN
    slots = torch.where(key_position < length, slot_table[row, : len(key_position)], SCRATCH_SLOT)
    keys, values = (cache.read(slots).transpose(0, 1) for cache in caches)
    source = (first[:, None] + offset).clamp(max=query.shape[1] - 1)
    attended = _causal(query[:, source].transpose(0, 1), keys, values, [each.position for each in segments])
    is_own = offset < count[:, None]
    out[:, source[is_own]] = attended.transpose(0, 1)[:, is_own]


def _causal(query: Tensor, keys: Tensor, values: Tensor, positions: Sequence[int]) -> Tensor:
    # query: [b, H, count, head_dim], from positions [b] on; keys, values: [b, H, length, head_dim] -> as query
    mask = None
    if any(positions):
        offset, key_position = (torch.arange(each.shape[2], device=query.device) for each in (query, keys))
        query_position = torch.tensor(positions, device=query.device)[:, None] + offset
        mask = (key_position <= query_position[:, :, None])[:, None]
    return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None)
