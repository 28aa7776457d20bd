"""Tiles of x @ weight.T for a few rows of x: the loops shared by the linear and the output kernels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from modelscope_polylm.network.kernels.configs import MatrixConfig, matrix_rows
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
def matrix_tile(
    x, weight, first, begin, end, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    # x, weight: descriptors of [R, K] and [N, K], in blocks of [BLOCK_M, BLOCK_K] and [BLOCK_N, BLOCK_K]
    # -> [BLOCK_M, BLOCK_N] fp32, outputs from `first` on, summed over the blocks begin..end-1 of K on the matrix units
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in range(begin, end):
        w = weight.load([first, block * BLOCK_K])
        a = x.load([0, block * BLOCK_K])
        # the weights are the left operand, whose 64 rows or more suit Hopper's warp-group instruction
        total = tl.dot(w, tl.trans(a), total, input_precision="ieee")
    return tl.trans(total)


def matrix_operands(x: Tensor, weight: Tensor, config: MatrixConfig) -> tuple[TensorDescriptor, TensorDescriptor]:
    """What `matrix_tile` reads; beyond the ends of both there are zeros."""
    # x: [R, K], weight: [N, K]
    return (
        TensorDescriptor.from_tensor(x, [matrix_rows(x.shape[0]), config.block_k]),
        TensorDescriptor.from_tensor(weight, [config.block_n, config.block_k]),
    )
