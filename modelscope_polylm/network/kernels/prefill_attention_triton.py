"""Kernel of `prefill_attention`: a program makes BLOCK_M positions of one head, those with most keys first.

Queries, keys and values arrive through tensor descriptors (Hopper's bulk copies). Scores are in units of log2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from modelscope_polylm.network.kernels.configs import PrefillAttentionConfig
from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.prefill_attention import Kept


@triton.jit
def meet(query, key, value, seen, scale, highest, total, mixed, MASKED: tl.constexpr):
    # query, mixed: [BLOCK_M, HEAD], key, value: [BLOCK_N, HEAD], seen: [BLOCK_M, BLOCK_N]; the running softmax goes on
    score = tl.dot(query, tl.trans(key)) * scale
    if MASKED:
        score = tl.where(seen, score, float("-inf"))
    above = tl.maximum(highest, tl.max(score, 1))
    weight = tl.exp2(score - above[:, None])
    factor = tl.exp2(highest - above)
    mixed = tl.dot(weight.to(value.dtype), value, mixed * factor[:, None])
    return above, total * factor + tl.sum(weight, 1), mixed


@triton.jit
def prefill_attention_kernel(
    queries, qkv, slots, key_cache, value_cache, out, length, cache_stride, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, KEEP: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    # queries, qkv: [T, 3 * WIDTH] in blocks of BLOCK_M and of BLOCK_N rows, slots: [T], caches: [HEADS, S, HEAD]
    # out: [T, WIDTH]
    WIDTH: tl.constexpr = HEADS * HEAD
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    # one dimension: the others of a grid end at 65,535, which the heads of many short prompts pass
    blocks = tl.cdiv(length, BLOCK_M)
    pair = tl.program_id(0) // blocks
    head, row = pair % HEADS, pair // HEADS * length
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
    column = head * HEAD
    q, d = first + tl.arange(0, BLOCK_M), tl.arange(0, HEAD)[None, :]
    query = queries.load([row + first, column])
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, HEAD), tl.float32)
    for start in range(0, first, BLOCK_N):
        key = qkv.load([row + start, column + WIDTH])
        value = qkv.load([row + start, column + 2 * WIDTH])
        highest, total, mixed = meet(query, key, value, True, scale, highest, total, mixed, False)
    # the program's own positions: each sees those before it, and they go to the cache
    head_place = head.to(tl.int64) * cache_stride
    for start in range(first, tl.minimum(first + BLOCK_M, length), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        key = qkv.load([row + start, column + WIDTH])
        value = qkv.load([row + start, column + 2 * WIDTH])
        seen = q[:, None] >= n[None, :]
        highest, total, mixed = meet(query, key, value, seen, scale, highest, total, mixed, True)
        if KEEP:
            place = head_place + tl.load(slots + row + n, mask=n < length, other=0)[:, None] * HEAD + d
            tl.store(key_cache + place, key, mask=(n < length)[:, None])
            tl.store(value_cache + place, value, mask=(n < length)[:, None])
    result = out + (row + q).to(tl.int64)[:, None] * WIDTH + column + d
    tl.store(result, mixed / total[:, None], mask=(q < length)[:, None])


def launch_prefill_attention(
    qkv: Tensor, prompts: int, heads: int, kept: Kept | None, out: Tensor, config: PrefillAttentionConfig
) -> None:
    # qkv: [T, 3D], out: [T, D]
    length, head = qkv.shape[0] // prompts, out.shape[1] // heads
    slots, keys, values = (qkv, out[None], out[None]) if kept is None else kept
    prefill_attention_kernel[(triton.cdiv(length, config.block_m) * prompts * heads,)](
        TensorDescriptor.from_tensor(qkv, [config.block_m, head]),
        TensorDescriptor.from_tensor(qkv, [config.block_n, head]),
        slots, keys, values, out, length, keys.shape[1] * head, 1.4426950408889634 / head**0.5,
        HEADS=heads, HEAD=head, BLOCK_M=config.block_m, BLOCK_N=config.block_n, KEEP=kept is not None,
        **launch_options(qkv.device, config.warps, config.stages),
    )  # fmt: skip
