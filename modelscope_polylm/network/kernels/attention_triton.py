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
    last_to_arrive,
    launch_options,
    wait_for_previous,
)
from modelscope_polylm.network.kernels.sums_triton import exact_sum

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


@triton.jit
def store_new(queries, keys, values, slot, exists, HEADS: tl.constexpr, HEAD: tl.constexpr):
    # queries: [Q, HEAD] pointers into qkv, slot, exists: [Q] -> the new keys and values are in the cache
    place = slot[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    stored = exists[:, None]
    tl.store(keys + place, tl.load(queries + HEADS * HEAD, mask=stored), mask=stored)
    tl.store(values + place, tl.load(queries + 2 * HEADS * HEAD, mask=stored), mask=stored)
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
    qkv, key_cache, value_cache, slot_table, rows, lengths, prompt_lengths, groups, out, maxima, sums, partials,
    counter, table_stride, cache_stride, row_blocks, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK_T: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    SPLITS: tl.constexpr, GROUP_SPLITS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
    AT_ONCE: tl.constexpr, OVERLAP: tl.constexpr,
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
    store_new(queries, head_keys, head_values, new_slot, q < size, HEADS, HEAD)
    m = tl.full((QUERIES,), float("-inf"), tl.float32)
    l = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, HEAD), tl.float32)
    for unit in tl.range(begin, end, num_stages=STAGES):
        owner, block = unit_block(unit, shared, own_blocks, size)
        t = block * BLOCK_T + lane
        place = slot[:, None] * HEAD + d
        key, value = tl.load(head_keys + place), tl.load(head_values + place)
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
        ROWS=min(QUERIES, triton.next_power_of_2(count)), SPLITS=config.splits, GROUP_SPLITS=config.group_splits,
        UNITS=config.min_units, STAGES=config.stages, AT_ONCE=BLOCKS_AT_ONCE,
        **launch_options(qkv.device, config.warps, registers=config.registers),
    )  # fmt: skip
