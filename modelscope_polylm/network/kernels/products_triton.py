"""Tiles of x @ weight.T: the loops that the linear and the output kernels share.

A sum over the inputs is never cut, and its terms come in one order: sixteen after sixteen on the matrix units, whose
instructions of all sizes round alike, and block after block by multiply-adds. So an output does not depend on the
number of rows or on the shape of the tile; on compute capability 9.0 the library's products give the same bits where
it does not cut the inputs either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from modelscope_polylm.network.kernels.order_triton import wait_for_previous

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import MatrixConfig


@triton.jit
def vector_tile(
    x, weight, first_row, first, R, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, K], weight: [N, K] -> [ROWS, BLOCK_N] fp32, rows from `first_row` and outputs from `first` on
    row = first_row + tl.arange(0, ROWS)[:, None, None]
    n = tl.minimum(first + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)[None, :, None]
    cols = tl.arange(0, BLOCK_K)[None, None, :]
    total = tl.zeros((ROWS, BLOCK_N, BLOCK_K // 8), tl.float32)
    w = tl.load(weight + n * K + cols, mask=cols < K, other=0.0, eviction_policy="evict_first")
    wait_for_previous(OVERLAP)
    for start in range(0, K, BLOCK_K):
        # the next weights are on their way while these are used
        k, ahead = start + cols, start + BLOCK_K + cols
        next_w = tl.load(weight + n * K + ahead, mask=ahead < K, other=0.0, eviction_policy="evict_first")
        a = tl.load(x + row.to(tl.int64) * K + k, mask=(row < R) & (k < K), other=0.0).to(tl.float32)
        # eight neighbours, one or two loads of a thread, are added at once: fewer sums stay in registers
        total += tl.sum((a * w.to(tl.float32)).reshape(ROWS, BLOCK_N, BLOCK_K // 8, 8), 3)
        w = next_w
    return tl.sum(total, 2)


@triton.jit
def matrix_tile(
    x, weight, first_row, first, blocks, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    # x, weight: descriptors of [R, K] and [N, K], in blocks of [BLOCK_M, BLOCK_K] and [BLOCK_N, BLOCK_K]
    # -> [BLOCK_M, BLOCK_N] fp32, rows from `first_row` and outputs from `first` on, summed over all blocks of K
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in range(blocks):
        w = weight.load([first, block * BLOCK_K])
        a = x.load([first_row, block * BLOCK_K])
        # the weights are the left operand, whose 64 rows or more suit Hopper's warp-group instruction
        total = tl.dot(w, tl.trans(a), total, input_precision="ieee")
    return tl.trans(total)


def matrix_operands(x: Tensor, weight: Tensor, config: MatrixConfig) -> tuple[TensorDescriptor, TensorDescriptor]:
    """What `matrix_tile` reads; beyond the ends of both there are zeros."""
    # x: [R, K], weight: [N, K]
    return (
        TensorDescriptor.from_tensor(x, [config.block_m, config.block_k]),
        TensorDescriptor.from_tensor(weight, [config.block_n, config.block_k]),
    )
