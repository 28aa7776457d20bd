"""Kernel of `decode_attention`: split over the length, the prompt's keys read once for all beams.

The cached keys of a group get one running index v: v < P is a position of the shared prompt, then come the G own
positions of query 0, those of query 1, and so on. A program covers one head of one group over one range of v. Scores
are in units of log2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.configs import AttentionConfig
from modelscope_polylm.network.kernels.dispatch import counters
from modelscope_polylm.network.kernels.order_triton import admit_next, last_to_arrive, launch_options, wait_for_previous


@triton.jit
def combine(
    maxima, sums, partials, active,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, SPLITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    # maxima, sums: [SPLITS, QUERIES], partials: [SPLITS, QUERIES, HEAD], the first `active` splits in use
    # -> sum [QUERIES], weighted values [QUERIES, HEAD]
    q, d = tl.arange(0, QUERIES), tl.arange(0, HEAD)[None, :]
    every = tl.arange(0, triton.next_power_of_2(SPLITS))[:, None]
    maximum = tl.load(maxima + every * QUERIES + q[None, :], every < active, other=float("-inf"), cache_modifier=".cg")
    top = tl.max(maximum, 0)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, HEAD), tl.float32)
    for start in range(0, active, AT_ONCE):
        # the reads of AT_ONCE splits do not wait for each other
        for i in tl.static_range(AT_ONCE):
            row = tl.minimum(start + i, active - 1) * QUERIES + q
            level = tl.load(maxima + row, cache_modifier=".cg")
            factor = tl.where(start + i < active, tl.exp2(level - top), 0.0)
            total += factor * tl.load(sums + row, cache_modifier=".cg")
            mixed += factor[:, None] * tl.load(partials + row[:, None] * HEAD + d, cache_modifier=".cg")
    return total, mixed


@triton.jit
def attention_kernel(
    qkv, key_cache, value_cache, slot_table, lengths, prompt_lengths, out, maxima, sums, partials, counter,
    row_stride, cache_stride, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr, AT_ONCE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # qkv: [R, 3, HEADS, HEAD], caches: [HEADS, S, HEAD], slot_table: [R, row_stride], out: [R, HEADS, HEAD]
    # maxima, sums: [groups * HEADS, SPLITS, QUERIES], partials: [groups * HEADS, SPLITS, QUERIES, HEAD]
    # lengths, slots and what is cached were complete before the step began, so they are read before the wait
    split, head, first = tl.program_id(0), tl.program_id(1), tl.program_id(2) * GROUP
    admit_next(OVERLAP)
    length, prompt = tl.load(lengths + first), tl.load(prompt_lengths + first)
    own = tl.maximum(length - prompt, 0)
    prompt = length - own
    keys = length if GROUP == 1 else prompt + GROUP * own
    blocks = tl.cdiv(keys, BLOCK_T)
    share = tl.maximum(tl.cdiv(blocks, SPLITS), 1)
    active = tl.maximum(tl.cdiv(blocks, share), 1)
    if split >= active:
        return
    begin = split * share * BLOCK_T
    end = tl.minimum(begin + share * BLOCK_T, keys)
    q, d = tl.arange(0, QUERIES), tl.arange(0, HEAD)[None, :]
    exists = (q < GROUP)[:, None]
    place = (first + q)[:, None] * (3 * HEADS * HEAD) + head * HEAD + d
    head_keys = key_cache + head.to(tl.int64) * cache_stride
    head_values = value_cache + head.to(tl.int64) * cache_stride
    slots = slot_table + first * row_stride
    if GROUP == 1:
        query, highest, total, mixed = attend_row(
            qkv + place, exists, head_keys, head_values, slots, begin, end, scale, HEAD, BLOCK_T, OVERLAP
        )
    else:
        query, highest, total, mixed = attend_group(
            qkv + place, exists, head_keys, head_values, slots, row_stride, begin, end, prompt, tl.maximum(own, 1),
            scale, HEAD, QUERIES, BLOCK_T, OVERLAP,
        )  # fmt: skip
    if split == 0:
        # the new tokens: stored in the cache, and each seen by its own row
        key = tl.load(qkv + place + HEADS * HEAD, mask=exists, other=0.0)
        value = tl.load(qkv + place + 2 * HEADS * HEAD, mask=exists, other=0.0)
        new = tl.load(slots + q * row_stride + length, mask=q < GROUP, other=0)[:, None] * HEAD + d
        tl.store(head_keys + new, key, mask=exists)
        tl.store(head_values + new, value, mask=exists)
        score = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * scale
        highest, factor, weight = advance(score, highest, True)
        total = total * factor + weight
        mixed = mixed * factor[:, None] + weight[:, None] * value.to(tl.float32)
    result = out + (first + q)[:, None] * (HEADS * HEAD) + head * HEAD + d
    if active == 1:
        tl.store(result, mixed / total[:, None], mask=exists)
    else:
        pair = tl.program_id(2) * HEADS + head
        row = (pair * SPLITS + split) * QUERIES + q
        tl.store(maxima + row, highest)
        tl.store(sums + row, total)
        tl.store(partials + row[:, None] * HEAD + d, mixed)
        if last_to_arrive(counter + pair, active):
            base = pair * SPLITS * QUERIES
            total, mixed = combine(
                maxima + base, sums + base, partials + base * HEAD, active, HEAD, QUERIES, SPLITS, AT_ONCE
            )
            tl.store(result, mixed / total[:, None], mask=exists)


def launch_attention(
    qkv: Tensor, key_cache: Tensor, value_cache: Tensor, slot_table: Tensor, lengths: Tensor, prompt_lengths: Tensor,
    group: int, out: Tensor, config: AttentionConfig,
) -> None:  # fmt: skip
    # qkv: [R, 3D], caches: [H, S, head], slot_table: [R, T], lengths, prompt_lengths: [R], out: [R, D]
    heads, slots, width = key_cache.shape
    groups = qkv.shape[0] // group
    queries = 1 if group == 1 else 16
    splits = config.splits
    sums = torch.empty(2, groups * heads, splits, queries, dtype=torch.float32, device=qkv.device)
    partials = torch.empty(groups * heads, splits, queries, width, dtype=torch.float32, device=qkv.device)
    attention_kernel[(splits, heads, groups)](
        qkv, key_cache, value_cache, slot_table, lengths, prompt_lengths, out, sums[0], sums[1], partials,
        counters(qkv.device), slot_table.shape[1], slots * width, 1.4426950408889634 / width**0.5,
        HEADS=heads, HEAD=width, GROUP=group, QUERIES=queries, SPLITS=splits, BLOCK_T=config.block_t,
        AT_ONCE=min(splits, 8 if group == 1 else 4),
        **launch_options(qkv.device, config.warps),
    )  # fmt: skip


@triton.jit
def advance(score, highest, seen):
    # running maximum meets new scores -> new maximum, factor for the old sums, weights of the new keys (0 if not seen)
    after = tl.maximum(highest, score)
    factor = tl.where(highest == after, 1.0, tl.exp2(highest - after))
    return after, factor, tl.where(seen, tl.exp2(score - after), 0.0)


@triton.jit
def load_block(keys, values, slot, seen, HEAD: tl.constexpr):
    # slot: [BLOCK_T] int32, read where seen -> key, value: [BLOCK_T, HEAD]
    place = slot[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    key = tl.load(keys + place, mask=seen[:, None], other=0.0)
    return key, tl.load(values + place, mask=seen[:, None], other=0.0)


@triton.jit
def attend_row(
    queries, exists, keys, values, slots, begin, end, scale,
    HEAD: tl.constexpr, BLOCK_T: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # queries: [1, HEAD] pointers -> query, maximum [1], sum [1], weighted values [1, HEAD]
    # every lane keeps a running softmax of its own, so that positions meet only once, after the loop
    lane = tl.arange(0, BLOCK_T)
    highest = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    mixed = tl.zeros((BLOCK_T, HEAD), tl.float32)
    t = begin + lane
    key, value = load_block(keys, values, tl.load(slots + t, mask=t < end, other=0), t < end, HEAD)
    slot = tl.load(slots + t + BLOCK_T, mask=t + BLOCK_T < end, other=0)
    wait_for_previous(OVERLAP)
    query = tl.load(queries, mask=exists, other=0.0)
    scaled = query.to(tl.float32) * scale
    for start in range(begin, end, BLOCK_T):
        # the next block is on its way while this one is used
        t = start + lane
        next_key, next_value = load_block(keys, values, slot, t + BLOCK_T < end, HEAD)
        slot = tl.load(slots + t + 2 * BLOCK_T, mask=t + 2 * BLOCK_T < end, other=0)
        score = tl.where(t < end, tl.sum(key.to(tl.float32) * scaled, 1), float("-inf"))
        highest, factor, weight = advance(score, highest, t < end)
        total = total * factor + weight
        mixed = mixed * factor[:, None] + weight[:, None] * value.to(tl.float32)
        key, value = next_key, next_value
    top = tl.max(highest, 0, keep_dims=True)
    factor = tl.where(highest == float("-inf"), 0.0, tl.exp2(highest - top))
    total = tl.sum(total * factor, 0, keep_dims=True)
    return query, top, total, tl.sum(mixed * factor[:, None], 0, keep_dims=True)


@triton.jit
def group_slots(slots, row_stride, v, end, prompt, own):
    # the slots of keys v: [BLOCK_T] of a group, 0 from `end` on
    owner = tl.where(v < prompt, 0, (v - prompt) // own)
    position = tl.where(v < prompt, v, prompt + (v - prompt) % own)
    return tl.load(slots + owner * row_stride + position, mask=v < end, other=0)


@triton.jit
def attend_group(
    queries, exists, keys, values, slots, row_stride, begin, end, prompt, own, scale,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, BLOCK_T: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # queries: [QUERIES, HEAD] pointers -> query, maximum [QUERIES], sum [QUERIES], weighted values [QUERIES, HEAD]
    lane, q = tl.arange(0, BLOCK_T), tl.arange(0, QUERIES)[:, None]
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, HEAD), tl.float32)
    v = begin + lane
    key, value = load_block(keys, values, group_slots(slots, row_stride, v, end, prompt, own), v < end, HEAD)
    slot = group_slots(slots, row_stride, v + BLOCK_T, end, prompt, own)
    wait_for_previous(OVERLAP)
    query = tl.load(queries, mask=exists, other=0.0)
    for start in range(begin, end, BLOCK_T):
        # the next block is on its way while this one is used
        v = start + lane
        next_key, next_value = load_block(keys, values, slot, v + BLOCK_T < end, HEAD)
        slot = group_slots(slots, row_stride, v + 2 * BLOCK_T, end, prompt, own)
        visible = (v < end)[None, :] & ((v < prompt)[None, :] | (((v - prompt) // own)[None, :] == q))
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(visible, score, float("-inf"))
        highest, factor, _ = advance(tl.max(score, 1), highest, True)
        weight = tl.where(visible, tl.exp2(score - highest[:, None]), 0.0)
        total = total * factor + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * factor[:, None], input_precision="ieee")
        key, value = next_key, next_value
    return query, highest, total, mixed
