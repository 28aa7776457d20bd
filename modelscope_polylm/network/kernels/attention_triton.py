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
from modelscope_polylm.network.kernels.order_triton import admit_next, last_to_arrive, launch_options, wait_for_previous

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import AttentionConfig

LOG2_E = 1.4426950408889634
QUERIES = 16
"""Rows of a matrix-unit product: the most queries that share a unit."""
BLOCKS_AT_ONCE = 4
"""Blocks that are read together when several programs' blocks are folded."""


@triton.jit
def exact_sum(weights, FINE: tl.constexpr):
    # weights: [Q, T] of at most 2 -> [Q]; rounded to multiples of 2^-17, 64 of them add up exactly in any order
    coarse = (weights + 96.0) - 96.0
    total = tl.sum(coarse, 1)
    if FINE:
        # the rest in multiples of 2^-35
        total += tl.sum(((weights - coarse) + 96.0 / 262144) - 96.0 / 262144, 1)
    return total


@triton.jit
def block_softmax(query, key, value, visible, scale, MASKED: tl.constexpr):
    # query: [Q, D], key, value: [T, D], visible: [Q, T] -> m: [Q], l: [Q], acc: [Q, D] fp32 of this block alone
    score = tl.dot(query, tl.trans(key), input_precision="ieee")
    if MASKED:
        score = tl.where(visible, score, float("-inf"))
    m = tl.max(score, 1) * scale
    # a query that sees no key of the block has a maximum of -inf
    finite = tl.where(m == float("-inf"), 0.0, m)[:, None]
    # fused on purpose: the compiler's choice might differ from kernel to kernel
    weight = tl.exp2(tl.fma(score, tl.full(score.shape, 1.0, tl.float32) * scale, 0.0 - finite))
    if MASKED:
        weight = tl.where(visible, weight, 0.0)
    acc = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return m, exact_sum(weight, value.dtype == tl.float32), acc


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


@triton.jit
def load_cached(keys, values, slots, t, end, HEAD: tl.constexpr):
    # t: [T] positions, read below `end` -> key, value: [T, HEAD]
    inside = t < end
    place = tl.load(slots + t, mask=inside, other=0)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    key = tl.load(keys + place, mask=inside[:, None], other=0.0)
    return key, tl.load(values + place, mask=inside[:, None], other=0.0)


@triton.jit
def store_new(qkv, keys, values, slots, row, table_stride, length, exists, HEADS: tl.constexpr, HEAD: tl.constexpr):
    # qkv: [Q, HEAD] pointers to queries, row: [Q], exists: [Q] -> keys and values behind them go to their slots
    slot = tl.load(slots + row.to(tl.int64) * table_stride + length, mask=exists, other=0)
    place = slot[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    stored = exists[:, None]
    tl.store(keys + place, tl.load(qkv + HEADS * HEAD, mask=stored), mask=stored)
    tl.store(values + place, tl.load(qkv + 2 * HEADS * HEAD, mask=stored), mask=stored)


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
    qkv, key_cache, value_cache, slot_table, rows, lengths, prompt_lengths, groups, out, maxima, sums, partials,
    counter, table_stride, cache_stride, row_blocks, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK_T: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    SPLITS: tl.constexpr, GROUP_SPLITS: tl.constexpr, UNITS: tl.constexpr, AT_ONCE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # qkv: [n, 3, HEADS, HEAD], caches: [HEADS, S, HEAD], slot_table: [R, table_stride], out: [n, HEADS, HEAD]
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
    head_keys = key_cache + head.to(tl.int64) * cache_stride
    head_values = value_cache + head.to(tl.int64) * cache_stride
    owner, block = unit_block(begin, shared, own_blocks, size)
    slots = slot_table + tl.load(rows + first + owner).to(tl.int64) * table_stride
    key, value = load_cached(head_keys, head_values, slots, block * BLOCK_T + lane, length, HEAD)
    wait_for_previous(OVERLAP)
    head_qkv = qkv + first.to(tl.int64) * (3 * HEADS * HEAD) + head * HEAD
    queries = head_qkv + q[:, None] * (3 * HEADS * HEAD) + d
    query = tl.load(queries, mask=(q < size)[:, None], other=0.0)
    m = tl.full((QUERIES,), float("-inf"), tl.float32)
    l = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, HEAD), tl.float32)
    for unit in range(begin, end):
        t = block * BLOCK_T + lane
        # the new token is not in the cache yet
        new = head_qkv + owner * (3 * HEADS * HEAD) + tl.zeros((BLOCK_T, 1), tl.int32) + d
        is_new = (t == length)[:, None]
        unit_key = tl.load(new + HEADS * HEAD, mask=is_new, other=key)
        unit_value = tl.load(new + 2 * HEADS * HEAD, mask=is_new, other=value)
        is_shared = unit < shared
        sees = (q >= tl.where(is_shared, 0, owner)) & (q <= tl.where(is_shared, size - 1, owner))
        place = ((first + q) * HEADS + head) * row_blocks + block
        # the next unit is on its way while this one is used
        owner, block = unit_block(unit + 1, shared, own_blocks, size)
        slots = slot_table + tl.load(rows + first + owner).to(tl.int64) * table_stride
        cached_end = tl.where(unit + 1 < end, length, 0)
        key, value = load_cached(head_keys, head_values, slots, block * BLOCK_T + lane, cached_end, HEAD)
        visible = sees[:, None] & (t <= length)[None, :]
        block_m, block_l, block_acc = block_softmax(query, unit_key, unit_value, visible, scale, True)
        if active == 1:
            m, l, acc = fold(m, l, acc, block_m, block_l, block_acc)
        else:
            tl.store(maxima + place, block_m, mask=sees)
            tl.store(sums + place, block_l, mask=sees)
            tl.store(partials + place.to(tl.int64)[:, None] * HEAD + d, block_acc, mask=sees[:, None])
    if split == 0:
        group_rows = tl.load(rows + first + q, mask=q < size, other=0)
        store_new(queries, head_keys, head_values, slot_table, group_rows, table_stride, length, q < size, HEADS, HEAD)
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
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, rows: Tensor, lengths: Tensor,
    prompt_lengths: Tensor, groups: Tensor, out: Tensor, config: AttentionConfig,
) -> None:  # fmt: skip
    # qkv: [n, 3D], caches: [H, S, head_dim], slot_table: [R, T], rows: [n], groups: [n, 2], out: [n, D]
    heads, slots, head_dim = key_cache.shape
    count, positions = len(qkv), slot_table.shape[1]
    row_blocks = triton.cdiv(positions, config.block_t)
    cells = count * heads * row_blocks if config.group_splits > 1 else 0
    sums = torch.empty(2, cells, dtype=torch.float32, device=qkv.device)
    partials = torch.empty(cells, head_dim, dtype=torch.float32, device=qkv.device)
    decode_attention_kernel[(heads, len(groups), config.group_splits)](
        qkv, key_cache, value_cache, slot_table, rows, lengths, prompt_lengths, groups, out, sums[0], sums[1], partials,
        counters(qkv.device), positions, slots * head_dim, row_blocks, LOG2_E / head_dim**0.5,
        HEADS=heads, HEAD=head_dim, BLOCK_T=config.block_t, QUERIES=QUERIES,
        ROWS=min(QUERIES, triton.next_power_of_2(count)), SPLITS=config.splits,
        GROUP_SPLITS=config.group_splits, UNITS=config.min_units,
        AT_ONCE=BLOCKS_AT_ONCE, **launch_options(qkv.device, config.warps, registers=config.registers),
    )  # fmt: skip
