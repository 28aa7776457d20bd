"""What one program of decode attention does with its range of the cached keys: running softmax, block by block.

Every block is read while the one before it is used, and the first before the wait for the previous kernel. Scores are
in units of log2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from modelscope_polylm.network.kernels.order_triton import wait_for_previous


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
