"""Kernel of `decode_attention`, and the softmax over blocks of keys that decode and prefill share.

Keys are cut into blocks of positions, counted from the start of the row. A block gives a maximum m, a sum l and the
weighted values acc of its own, and blocks are folded in order. So the result of a row does not depend on who computes
which block: one program or several, for one query or for many, in decode or in prefill. Scores are in units of log2.

A group of rows that share a prompt is a list of units: first the blocks that lie within the prompt, each for all
queries, then the other blocks of query 0, those of query 1, and so on, each for its own query. A program covers some
consecutive units of one head of one group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.dispatch import counters
from modelscope_polylm.network.kernels.order_triton import (
    admit_next,
    exact_sum,
    last_to_arrive,
    launch_options,
    wait_for_previous,
)

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import AttentionConfig

LOG2_E = 1.4426950408889634
QUERIES = 16
"""Rows of a matrix-unit product: the most queries that share a unit."""
BLOCKS_AT_ONCE = 4
"""Blocks that are read together when several programs' blocks are folded."""


@triton.jit
def block_softmax(score, visible, scale, MASKED: tl.constexpr, FINE: tl.constexpr):
    # score: [Q, T] products of one block, visible: [Q, T] -> m: [Q], l: [Q], weights: [Q, T] fp32
    if MASKED:
        score = tl.where(visible, score, float("-inf"))
    # fused on purpose, here and below: the compiler's own choice might differ from kernel to kernel
    highest = tl.max(score, 1)
    m = tl.fma(highest, tl.full(highest.shape, 0.0, tl.float32) + scale, tl.zeros(highest.shape, tl.float32))
    # a query that sees no key of the block has a maximum of -inf
    finite = tl.where(m == float("-inf"), 0.0, m)[:, None]
    weights = tl.exp2(tl.fma(score, tl.full(score.shape, 0.0, tl.float32) + scale, 0.0 - finite))
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    return m, exact_sum(weights, score.shape[1], FINE), weights


@triton.jit
def fold(m, l, acc, block_m, block_l, block_acc):
    # m, l: [Q], acc: [Q, D]: softmax over the keys so far; block_*: over the next block -> over both
    top = tl.maximum(m, block_m)
    old = tl.where(m == top, 1.0, tl.exp2(m - top))
    new = tl.where(block_m == top, 1.0, tl.exp2(block_m - top))
    l = tl.fma(l, old, block_l * new)
    acc = tl.fma(acc, tl.broadcast_to(old[:, None], acc.shape), block_acc * new[:, None])
    return top, l, acc


@triton.jit
def unit_block(unit, shared, own_blocks, size):
    # -> the query that owns the unit (0 for a shared one) and the block of positions
    own = unit - shared
    owner = tl.where(own < 0, 0, tl.minimum(own // own_blocks, size - 1))
    return owner, tl.where(own < 0, unit, shared + own % own_blocks)


INT8_TO_BF16 = tl.constexpr("""{
    .reg .b32 a, b, one, minus_zero;
    mov.b32 one, 0x3F803F80;
    mov.b32 minus_zero, 0x80008000;
    prmt.b32 $0, $2, 0, 0x4140;
    prmt.b32 $1, $2, 0, 0x4342;
    lop3.b32 a, $0, 0x00800080, 0xC300C300, 0xEA;
    lop3.b32 b, $1, 0x00800080, 0xC300C300, 0xEA;
    lop3.b32 $0, $0, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 $1, $1, 0x007F007F, 0x43004300, 0xEA;
    fma.rn.bf16x2 $0, $0, one, a;
    fma.rn.bf16x2 $1, $1, one, b;
    fma.rn.bf16x2 $0, $0, $3, minus_zero;
    fma.rn.bf16x2 $1, $1, $4, minus_zero;
}""")
"""PTX from four int8 and their bf16 scales to the four products in bf16; see PAIRS in `quantized_triton`."""


@triton.jit
def plain(numbers, scales, place, DTYPE: tl.constexpr):
    # numbers: [T, HEAD] int8, scales: pointer to bf16, place: [T] -> [T, HEAD] DTYPE
    scale = tl.broadcast_to(tl.load(scales + place)[:, None], numbers.shape)
    if tl.bfloat16 == DTYPE:
        return tl.inline_asm_elementwise(
            INT8_TO_BF16, "=&r,=&r,r,r,r", [numbers, scale], tl.bfloat16, is_pure=True, pack=4
        )
    else:
        return (numbers.to(tl.float32) * scale.to(tl.float32)).to(DTYPE)


@triton.jit
def cache_scale(largest):
    # largest: [Q] -> [Q] fp32, largest / 127 rounded up to what bf16 holds
    bits = (largest * 0.007874015748031496).to(tl.int32, bitcast=True)
    return ((bits + 0xFFFF) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def store_cached(numbers, target, scales, slot, exists, HEAD: tl.constexpr, SCALED: tl.constexpr):
    # numbers: [Q, HEAD], target: [S, HEAD], scales: [S] if SCALED, slot, exists: [Q]
    # -> what the cache then holds: [Q, HEAD] in the dtype of the numbers
    place, stored = target + slot[:, None] * HEAD + tl.arange(0, HEAD)[None, :], exists[:, None]
    if SCALED:
        exact = numbers.to(tl.float32)
        scale = cache_scale(tl.max(tl.abs(exact), 1))
        factor = tl.broadcast_to(tl.div_rn(1.0, tl.where(scale == 0.0, 1.0, scale))[:, None], exact.shape)
        # added and taken off, 1.5 * 2^23 rounds to whole numbers; fused on purpose
        whole = tl.fma(exact, factor, tl.full(exact.shape, 12582912.0, tl.float32)) - 12582912.0
        tl.store(place, whole.to(tl.int8), mask=stored)
        tl.store(scales + slot, scale.to(tl.bfloat16), mask=exists)
        numbers = (whole * scale[:, None]).to(numbers.dtype)
    else:
        tl.store(place, numbers, mask=stored)
    return numbers


@triton.jit
def store_new(
    queries, keys, values, key_scales, value_scales, slot, exists,
    HEADS: tl.constexpr, HEAD: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    # queries: [Q, HEAD] pointers into qkv, slot, exists: [Q] -> the new keys and values are in the cache
    stored = exists[:, None]
    key = tl.load(queries + HEADS * HEAD, mask=stored, other=0.0)
    store_cached(key, keys, key_scales, slot, exists, HEAD, SCALED)
    value = tl.load(queries + 2 * HEADS * HEAD, mask=stored, other=0.0)
    store_cached(value, values, value_scales, slot, exists, HEAD, SCALED)
    # every program that reads them stores them itself, so it has to wait for nobody else
    tl.debug_barrier()


@triton.jit
def fold_blocks(
    maxima, sums, partials, out, row_blocks, out_stride, size, blocks,
    HEAD: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    # maxima, sums: [size, row_blocks], partials: [size, row_blocks, HEAD], the first `blocks` in use -> out
    r, d = tl.arange(0, ROWS), tl.arange(0, HEAD)[None, :]
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    l = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, HEAD), tl.float32)
    for start in range(0, blocks, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            exists = r < tl.where(start + i < blocks, size, 0)
            place = r * row_blocks + start + i
            block_m = tl.load(maxima + place, mask=exists, other=float("-inf"), cache_modifier=".cg")
            block_l = tl.load(sums + place, mask=exists, other=0.0, cache_modifier=".cg")
            block_place = partials + place[:, None] * HEAD + d
            block_acc = tl.load(block_place, mask=exists[:, None], other=0.0, cache_modifier=".cg")
            m, l, acc = fold(m, l, acc, block_m, block_l, block_acc)
    tl.store(out + r[:, None] * out_stride + d, acc / l[:, None], mask=(r < size)[:, None])


@triton.jit
def decode_attention_kernel(
    qkv, key_cache, value_cache, scales, slot_table, rows, lengths, prompt_lengths, groups, out, maxima, sums, partials,
    counter, table_stride, cache_slots, row_blocks, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK_T: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    SPLITS: tl.constexpr, GROUP_SPLITS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
    AT_ONCE: tl.constexpr, SCALED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # qkv: [n, 3, HEADS, HEAD], caches: [HEADS, S, HEAD], scales: [2, HEADS, S] if SCALED, out: [n, HEADS, HEAD]
    # slot_table: [R, table_stride]
    # maxima, sums: [n, HEADS, row_blocks], partials: [n, HEADS, row_blocks, HEAD]
    # lengths, slots and what is cached were complete before the step began, so they are read before the wait
    head, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    admit_next(OVERLAP)
    first, size = tl.load(groups + 2 * group), tl.load(groups + 2 * group + 1)
    if size == 0:
        return
    row = tl.load(rows + first)
    length, prompt = tl.load(lengths + row), tl.load(prompt_lengths + row)
    blocks = length // BLOCK_T + 1
    shared = tl.where(size > 1, tl.minimum(prompt, length) // BLOCK_T, 0)
    own_blocks = blocks - shared
    units = shared + size * own_blocks
    share = tl.maximum(tl.cdiv(units, tl.minimum(SPLITS * size, GROUP_SPLITS)), UNITS)
    active = tl.cdiv(units, share)
    if split >= active:
        return
    begin, end = split * share, tl.minimum(split * share + share, units)
    q, lane, d = tl.arange(0, QUERIES), tl.arange(0, BLOCK_T), tl.arange(0, HEAD)[None, :]
    head_slots = head.to(tl.int64) * cache_slots
    head_keys, head_values = key_cache + head_slots * HEAD, value_cache + head_slots * HEAD
    key_scales = scales + head_slots
    value_scales = key_scales + HEADS * cache_slots
    D: tl.constexpr = HEADS * HEAD
    group_rows = tl.load(rows + first + q, mask=q < size, other=0)
    new_slot = tl.load(slot_table + group_rows.to(tl.int64) * table_stride + length, mask=q < size, other=0)
    # positions beyond the last are read like the last: cheaper than a mask, and their weights are zero
    owner, block = unit_block(begin, shared, own_blocks, size)
    slots = slot_table + tl.load(rows + first + owner).to(tl.int64) * table_stride
    slot = tl.load(slots + tl.minimum(block * BLOCK_T + lane, length))
    wait_for_previous(OVERLAP)
    queries = qkv + (first + q).to(tl.int64)[:, None] * (3 * D) + head * HEAD + d
    query = tl.load(queries, mask=(q < size)[:, None], other=0.0)
    store_new(queries, head_keys, head_values, key_scales, value_scales, new_slot, q < size, HEADS, HEAD, SCALED)
    m = tl.full((QUERIES,), float("-inf"), tl.float32)
    l = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, HEAD), tl.float32)
    for unit in tl.range(begin, end, num_stages=STAGES):
        owner, block = unit_block(unit, shared, own_blocks, size)
        t = block * BLOCK_T + lane
        place = slot[:, None] * HEAD + d
        key, value = tl.load(head_keys + place), tl.load(head_values + place)
        if SCALED:
            key, value = plain(key, key_scales, slot, query.dtype), plain(value, value_scales, slot, query.dtype)
        # the slots of the next unit are on their way, so that its keys can be, too
        next_owner, next_block = unit_block(tl.minimum(unit + 1, end - 1), shared, own_blocks, size)
        slots = slot_table + tl.load(rows + first + next_owner).to(tl.int64) * table_stride
        slot = tl.load(slots + tl.minimum(next_block * BLOCK_T + lane, length))
        is_shared = unit < shared
        sees = (q >= tl.where(is_shared, 0, owner)) & (q <= tl.where(is_shared, size - 1, owner))
        visible = sees[:, None] & (t <= length)[None, :]
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        block_m, block_l, weights = block_softmax(score, visible, scale, True, key.dtype == tl.float32)
        block_acc = tl.dot(weights.to(key.dtype), value, input_precision="ieee")
        if active == 1:
            m, l, acc = fold(m, l, acc, block_m, block_l, block_acc)
        else:
            partial = ((first + q) * HEADS + head) * row_blocks + block
            tl.store(maxima + partial, block_m, mask=sees)
            tl.store(sums + partial, block_l, mask=sees)
            tl.store(partials + partial.to(tl.int64)[:, None] * HEAD + d, block_acc, mask=sees[:, None])
    result = out + first.to(tl.int64) * (HEADS * HEAD) + head * HEAD
    if active == 1:
        tl.store(result + q[:, None] * (HEADS * HEAD) + d, acc / l[:, None], mask=(q < size)[:, None])
    elif last_to_arrive(counter + group * HEADS + head, active):
        base = (first * HEADS + head) * row_blocks
        fold_blocks(
            maxima + base, sums + base, partials + base.to(tl.int64) * HEAD, result, HEADS * row_blocks, HEADS * HEAD,
            size, blocks, HEAD, ROWS, AT_ONCE,
        )  # fmt: skip


def launch_decode_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, scales: Tensor | None, slot_table: Tensor, rows: Tensor,
    lengths: Tensor, prompt_lengths: Tensor, groups: Tensor, out: Tensor, config: AttentionConfig,
) -> None:  # fmt: skip
    # qkv: [n, 3D], caches: [H, S, head_dim], slot_table: [R, T], rows: [n], groups: [n, 2], out: [n, D]
    heads, slots, head_dim = key_cache.shape
    count, positions = len(qkv), slot_table.shape[1]
    row_blocks = triton.cdiv(positions, config.block_t)
    cells = count * heads * row_blocks if config.group_splits > 1 else 0
    sums = torch.empty(2, cells, dtype=torch.float32, device=qkv.device)
    partials = torch.empty(cells, head_dim, dtype=torch.float32, device=qkv.device)
    decode_attention_kernel[(heads, len(groups), config.group_splits)](
        qkv, key_cache, value_cache, qkv if scales is None else scales, slot_table, rows, lengths, prompt_lengths,
        groups, out, sums[0], sums[1], partials, counters(qkv.device), positions, slots, row_blocks,
        LOG2_E / head_dim**0.5,
        HEADS=heads, HEAD=head_dim, BLOCK_T=config.block_t, QUERIES=QUERIES,
        ROWS=min(QUERIES, triton.next_power_of_2(count)), SPLITS=config.splits, GROUP_SPLITS=config.group_splits,
        UNITS=config.min_units, STAGES=config.stages, AT_ONCE=BLOCKS_AT_ONCE, SCALED=scales is not None,
        **launch_options(qkv.device, config.warps, registers=config.registers),
    )  # fmt: skip
