"""Kernels of `linear` and `add_product_`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous
from modelscope_polylm.network.kernels.products_triton import matrix_operands, matrix_tile, vector_tile

GELU_BLOCK = 2048


@triton.jit
def gelu_tanh(y):
    # y * (1 + tanh(u)) / 2 = y * sigmoid(2 u), u = sqrt(2 / pi) (y + 0.044715 y^3); exp2 takes -2 u log2(e)
    # fused on purpose: the compiler's own choice might differ from kernel to kernel
    return y / (1.0 + tl.exp2(-2.302208198384291 * tl.fma(0.044715 * y * y, y, y)))


@triton.jit
def finish(
    total, bias, out, first_row, first, R, N,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    # total: [ROWS, BLOCK_N] fp32, out: [R, N]; ADD: it is added to, and there is no bias
    row, n = first_row + tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_N)
    inside = (row < R) & (n < N)[None, :]
    place = out + row.to(tl.int64) * N + n[None, :]
    if ADD:
        y = total + tl.load(place, mask=inside, other=0.0)
    else:
        y = total + tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        # rounded before, too, as a product of the library is
        y = gelu_tanh(y.to(out.dtype.element_ty).to(tl.float32))
    tl.store(place, y, mask=inside)


@triton.jit
def vector_kernel(
    x, weight, bias, out, R, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GELU: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, K], weight: [N, K], bias: [N], out: [R, N]; a program makes BLOCK_N outputs of ROWS rows
    first, first_row = tl.program_id(0) * BLOCK_N, tl.program_id(1) * ROWS
    admit_next(OVERLAP)
    total = vector_tile(x, weight, first_row, first, R, N, K, ROWS, BLOCK_N, BLOCK_K, OVERLAP)
    finish(total, bias, out, first_row, first, R, N, ROWS, BLOCK_N, GELU, ADD)


@triton.jit
def matrix_kernel(
    x, weight, bias, out, R, N, BLOCKS,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GELU: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x, weight: see `matrix_tile`, bias: [N], out: [R, N]; a program makes BLOCK_N outputs of BLOCK_M rows
    # those that read the same weights run one after the other
    first_row, first = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    total = matrix_tile(x, weight, first_row, first, BLOCKS, BLOCK_M, BLOCK_N, BLOCK_K)
    finish(total, bias, out, first_row, first, R, N, BLOCK_M, BLOCK_N, GELU, ADD)


@triton.jit
def gelu_kernel(y, SIZE, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    # y: [SIZE], in place
    place = y + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) < SIZE
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    tl.store(place, gelu_tanh(tl.load(place, mask=inside).to(tl.float32)), mask=inside)


def launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, gelu: bool, config: VectorConfig | MatrixConfig
) -> None:
    # x: [R, K], weight: [N, K], bias: [N], None adds to out: [R, N]
    rows, (outputs, inputs) = x.shape[0], weight.shape
    row_blocks, tiles = triton.cdiv(rows, config.block_m), triton.cdiv(outputs, config.block_n)
    fused = {"BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GELU": gelu, "ADD": bias is None}
    added = out if bias is None else bias
    if isinstance(config, VectorConfig):
        vector_kernel[(tiles, row_blocks)](
            x, weight, added, out, rows, outputs, K=inputs, ROWS=config.block_m, **fused,
            **launch_options(x.device, config.warps),
        )  # fmt: skip
    else:
        matrix_kernel[(row_blocks, tiles)](
            *matrix_operands(x, weight, config), added, out, rows, outputs, triton.cdiv(inputs, config.block_k),
            BLOCK_M=config.block_m, **fused, **launch_options(x.device, config.warps, config.stages),
        )  # fmt: skip


def launch_gelu(y: Tensor) -> None:
    """Apply the GELU of `linear` in place."""
    size = y.numel()
    gelu_kernel[(triton.cdiv(size, GELU_BLOCK),)](y, size, BLOCK=GELU_BLOCK, **launch_options(y.device, 4))
