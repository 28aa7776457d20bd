"""Kernel of `prefill_attention`: a program makes some tokens of one head of a tile, those with most keys first.

Its blocks of keys are those of decode, and so is its arithmetic (see `attention_triton`). Keys and values of tokens
that are in qkv are read there, by tensor descriptors (Hopper's bulk copies) where a whole block is; those that were
cached before are gathered from the cache. The tile's own keys and values go to the cache at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from modelscope_polylm.network.kernels.attention_triton import LOG2_E, block_softmax, fold, plain, store_cached
from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import PrefillAttentionConfig


@triton.jit
def load_block(
    fresh, keys, values, key_scales, value_scales, slots, t, start, end, offset,
    HEADS: tl.constexpr, HEAD: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    # t: [T] positions, below `end`; those from `start` on are in qkv, row offset + t -> key, value: [T, HEAD]
    d = tl.arange(0, HEAD)[None, :]
    cached, inside = t < start, (t < end)[:, None]
    slot = tl.load(slots + t, mask=cached, other=0)
    place = slot[:, None] * HEAD + d
    new = fresh + (offset + t).to(tl.int64)[:, None] * (3 * HEADS * HEAD) + d
    is_cached = cached[:, None]
    if SCALED:
        key = tl.load(new + HEADS * HEAD, mask=inside & ~is_cached, other=0.0)
        key = tl.where(is_cached, plain(tl.load(keys + place), key_scales, slot, key.dtype), key)
        value = tl.load(new + 2 * HEADS * HEAD, mask=inside & ~is_cached, other=0.0)
        value = tl.where(is_cached, plain(tl.load(values + place), value_scales, slot, key.dtype), value)
    else:
        key = tl.load(tl.where(is_cached, keys + place, new + HEADS * HEAD), mask=inside, other=0.0)
        value = tl.load(tl.where(is_cached, values + place, new + 2 * HEADS * HEAD), mask=inside, other=0.0)
    return key, value


@triton.jit
def attend(query, key, value, visible, scale, m, l, acc, MASKED: tl.constexpr):
    # query: [BLOCK_M, HEAD], key, value: [BLOCK_T, HEAD]: the softmax m, l, acc goes on over one block
    score = tl.dot(query, tl.trans(key), input_precision="ieee")
    block_m, block_l, weights = block_softmax(score, visible, scale, MASKED, value.dtype == tl.float32)
    block_acc = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return fold(m, l, acc, block_m, block_l, block_acc)


@triton.jit
def round_kernel(
    qkv, key_cache, value_cache, scales, slot_table, tiles, table_stride, cache_slots,
    HEADS: tl.constexpr, HEAD: tl.constexpr, TILE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # as in `prefill_attention_kernel`: the keys and values of a tile go to the cache, and what it holds back to qkv
    head, tile = tl.program_id(1), tiles + tl.program_id(0) * 5
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    row, first, position, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    i, d = tl.arange(0, TILE), tl.arange(0, HEAD)[None, :]
    exists = i < count
    slot = tl.load(slot_table + row.to(tl.int64) * table_stride + position + i, mask=exists, other=0)
    own = qkv + (first + i).to(tl.int64)[:, None] * (3 * HEADS * HEAD) + head * HEAD + d
    head_slots = head.to(tl.int64) * cache_slots
    for part in tl.static_range(2):
        place = own + (1 + part) * HEADS * HEAD
        target = (key_cache if part == 0 else value_cache) + head_slots * HEAD
        own_scales = scales + part * HEADS * cache_slots + head_slots
        numbers = tl.load(place, mask=exists[:, None], other=0.0)
        tl.store(place, store_cached(numbers, target, own_scales, slot, exists, HEAD, True), mask=exists[:, None])


# otherwise a number of tiles that 16 divides, or one tile, would be compiled for anew
@triton.jit(do_not_specialize=["tile_count"])
def prefill_attention_kernel(
    qkv, qkv_blocks, key_cache, value_cache, scales, slot_table, tiles, out, tile_count, table_stride, cache_slots,
    scale, HEADS: tl.constexpr, HEAD: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, SCALED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # qkv: [total, 3, HEADS, HEAD], qkv_blocks: its descriptor, [BLOCK_T, HEAD] at a time, caches: [HEADS, S, HEAD]
    # scales: [2, HEADS, S] if SCALED, where qkv has been through `round_kernel`
    # tiles: [tile_count, 5], out: [total, HEADS, HEAD]
    # one dimension: the others of a grid end at 65,535, which the heads of many tiles pass
    PARTS: tl.constexpr = TILE // BLOCK_M
    D: tl.constexpr = HEADS * HEAD
    parts = tile_count * PARTS
    head, part = tl.program_id(0) // parts, parts - 1 - tl.program_id(0) % parts
    tile, skipped = tiles + part // PARTS * 5, part % PARTS * BLOCK_M
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    row, first, position = tl.load(tile), tl.load(tile + 1) + skipped, tl.load(tile + 2) + skipped
    count = tl.minimum(tl.load(tile + 3) - skipped, BLOCK_M)
    if count <= 0:
        return
    start = tl.load(tile + 4)
    offset, end = first - position, position + count
    i, d, lane = tl.arange(0, BLOCK_M), tl.arange(0, HEAD)[None, :], tl.arange(0, BLOCK_T)
    head_slots = head.to(tl.int64) * cache_slots
    keys, values = key_cache + head_slots * HEAD, value_cache + head_slots * HEAD
    key_scales = scales + head_slots
    value_scales = key_scales + HEADS * cache_slots
    slots = slot_table + row.to(tl.int64) * table_stride
    fresh = qkv + head * HEAD
    own, exists = fresh + (first + i).to(tl.int64)[:, None] * (3 * D) + d, (i < count)[:, None]
    query = tl.load(own, mask=exists, other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, HEAD), tl.float32)
    # blocks that all queries see whole: first those with cached positions, then those that are all in qkv
    whole = (position + 1) // BLOCK_T
    cached_blocks = tl.minimum(tl.cdiv(start, BLOCK_T), whole)
    for block in tl.range(0, cached_blocks, num_stages=1):
        t = block * BLOCK_T + lane
        key, value = load_block(
            fresh, keys, values, key_scales, value_scales, slots, t, start, end, offset, HEADS, HEAD, SCALED,
        )  # fmt: skip
        m, l, acc = attend(query, key, value, True, scale, m, l, acc, False)
    for block in tl.range(cached_blocks, whole, num_stages=STAGES):
        key = qkv_blocks.load([offset + block * BLOCK_T, D + head * HEAD])
        value = qkv_blocks.load([offset + block * BLOCK_T, 2 * D + head * HEAD])
        m, l, acc = attend(query, key, value, True, scale, m, l, acc, False)
    for block in tl.range(whole, tl.cdiv(end, BLOCK_T), num_stages=1):
        t = block * BLOCK_T + lane
        key, value = load_block(
            fresh, keys, values, key_scales, value_scales, slots, t, start, end, offset, HEADS, HEAD, SCALED,
        )  # fmt: skip
        visible = t[None, :] <= (position + i)[:, None]
        m, l, acc = attend(query, key, value, visible, scale, m, l, acc, True)
    result = out + (first + i).to(tl.int64)[:, None] * D + head * HEAD + d
    tl.store(result, acc / l[:, None], mask=exists)
    if not SCALED:
        place = tl.load(slots + position + i, mask=i < count, other=0)[:, None] * HEAD + d
        tl.store(keys + place, tl.load(own + D, mask=exists), mask=exists)
        tl.store(values + place, tl.load(own + 2 * D, mask=exists), mask=exists)


def launch_prefill_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, scales: Tensor | None, slot_table: Tensor, tiles: Tensor,
    out: Tensor, tile: int, config: PrefillAttentionConfig,
) -> None:  # fmt: skip
    # qkv: [total, 3D], caches: [H, S, head_dim], slot_table: [R, T], tiles: [m, 5], each up to `tile` tokens
    heads, slots, head_dim = key_cache.shape
    count = len(tiles)
    assert tiles.shape[1] == 5
    if scales is not None:
        round_kernel[(count, heads)](
            qkv, key_cache, value_cache, scales, slot_table, tiles, slot_table.shape[1], slots,
            HEADS=heads, HEAD=head_dim, TILE=tile, **launch_options(qkv.device, warps=4),
        )  # fmt: skip
    prefill_attention_kernel[(count * (tile // config.block_m) * heads,)](
        qkv, TensorDescriptor.from_tensor(qkv, [config.block_t, head_dim]), key_cache, value_cache,
        qkv if scales is None else scales, slot_table, tiles, out, count, slot_table.shape[1], slots,
        LOG2_E / head_dim**0.5,
        HEADS=heads, HEAD=head_dim, TILE=tile, BLOCK_M=config.block_m,
        BLOCK_T=config.block_t, STAGES=config.stages, SCALED=scales is not None,
        **launch_options(qkv.device, config.warps),
    )  # fmt: skip
