"""Tiles of x @ weight.T for a few rows of x: the loops shared by the linear and the output kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from modelscope_polylm.network.kernels.order_triton import wait_for_previous


@triton.jit
def vector_tile(
    x, weight, first, R, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, K], weight: [N, K] -> [ROWS, BLOCK_N] fp32, by multiply-adds
    row = tl.arange(0, ROWS)[:, None, None]
    n = tl.minimum(first + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)[None, :, None]
    cols = tl.arange(0, BLOCK_K)[None, None, :]
    total = tl.zeros((ROWS, BLOCK_N, BLOCK_K // 8), tl.float32)
    w = tl.load(weight + n * K + cols, mask=cols < K, other=0.0, eviction_policy="evict_first")
    wait_for_previous(OVERLAP)
    for start in range(0, K, BLOCK_K):
        # the next weights are on their way while these are used
        k, ahead = start + cols, start + BLOCK_K + cols
        next_w = tl.load(weight + n * K + ahead, mask=ahead < K, other=0.0, eviction_policy="evict_first")
        a = tl.load(x + row * K + k, mask=(row < R) & (k < K), other=0.0).to(tl.float32)
        # eight neighbours, one 16-byte load of a thread, are added at once: fewer sums stay in registers
        total += tl.sum((a * w.to(tl.float32)).reshape(ROWS, BLOCK_N, BLOCK_K // 8, 8), 3)
        w = next_w
    return tl.sum(total, 2)


@triton.jit
def part_begin(part, K: tl.constexpr, PARTS: tl.constexpr, BLOCK_K: tl.constexpr):
    # first block of the part-th of PARTS ranges of the blocks of K
    return part * ((K + BLOCK_K - 1) // BLOCK_K) // PARTS


@triton.jit
def matrix_tile(
    x, weight, first, R, N, part, K: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, K], weight: [N, K] -> [BLOCK_M, BLOCK_N] fp32 over one part of K, on the matrix units
    # SWAP: the weights are the left operand, whose 64 rows or more suit Hopper's warp-group instruction
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.minimum(first + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)[:, None]
    cols = tl.arange(0, BLOCK_K)[None, :]
    HIGH: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    WIDE: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    total = tl.zeros((HIGH, WIDE), tl.float32)
    wait_for_previous(OVERLAP)
    for block in range(part_begin(part, K, PARTS, BLOCK_K), part_begin(part + 1, K, PARTS, BLOCK_K)):
        k = block * BLOCK_K + cols
        if K % BLOCK_K == 0:
            w = tl.load(weight + n * K + k)
            a = tl.load(x + m * K + k, mask=m < R, other=0.0)
        else:
            w = tl.load(weight + n * K + k, mask=k < K, other=0.0)
            a = tl.load(x + m * K + k, mask=(m < R) & (k < K), other=0.0)
        if SWAP:
            total = tl.dot(w, tl.trans(a), total, input_precision="ieee")
        else:
            total = tl.dot(a, tl.trans(w), total, input_precision="ieee")
    if SWAP:
        total = tl.trans(total)
    return total
