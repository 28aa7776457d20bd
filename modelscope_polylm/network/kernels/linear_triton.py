"""Kernels of `linear` and `add_product_`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, QuantizedConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import counters
from modelscope_polylm.network.kernels.order_triton import (
    admit_next,
    last_to_arrive,
    launch_options,
    wait_for_previous,
)
from modelscope_polylm.network.kernels.products_triton import matrix_operands, matrix_tile, vector_tile
from modelscope_polylm.network.kernels.quantized_triton import prefetch_words, quantized_operands, quantized_tile
from modelscope_polylm.network.quantization import QuantizedMatrix

GELU_BLOCK = 2048
EARLY_ROWS = tl.constexpr(16)
"""Rows of a program up to which it reads bias or residual before its sum, to wait for them while it sums."""
PREFETCHED_BLOCKS = 2
"""Blocks of words that are read ahead while the kernel before still runs."""


@triton.jit
def gelu_tanh(y):
    # y * (1 + tanh(u)) / 2 = y * sigmoid(2 u), u = sqrt(2 / pi) (y + 0.044715 y^3); exp2 takes -2 u log2(e)
    # fused on purpose: the compiler's own choice might differ from kernel to kernel
    return y / (1.0 + tl.exp2(-2.302208198384291 * tl.fma(0.044715 * y * y, y, y)))


@triton.jit
def summand(
    bias, out, first_row, first, R, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    # bias: [N], out: [R, N] -> [ROWS, BLOCK_N] fp32: what a product is added to, `out` itself if ADD
    row, n = first_row + tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_N)
    if ADD:
        place = out + row.to(tl.int64) * N + n[None, :]
        return tl.load(place, mask=(row < R) & (n < N)[None, :], other=0.0)
    else:
        return tl.broadcast_to(tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :], (ROWS, BLOCK_N))


@triton.jit
def finish(
    y, out, first_row, first, R, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, GELU: tl.constexpr
):  # fmt: skip
    # y: [ROWS, BLOCK_N] fp32, out: [R, N]
    row, n = first_row + tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_N)
    if GELU:
        # rounded before, too, as a product of the library is
        y = gelu_tanh(y.to(out.dtype.element_ty).to(tl.float32))
    tl.store(out + row.to(tl.int64) * N + n[None, :], y, mask=(row < R) & (n < N)[None, :])


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
    total += summand(bias, out, first_row, first, R, N, ROWS, BLOCK_N, ADD)
    finish(total, out, first_row, first, R, N, ROWS, BLOCK_N, GELU)


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
    total += summand(bias, out, first_row, first, R, N, BLOCK_M, BLOCK_N, ADD)
    finish(total, out, first_row, first, R, N, BLOCK_M, BLOCK_N, GELU)


@triton.jit
def quantized_kernel(
    x, words, scales, word_rows, bias, out, partials, counter, R, N,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FORMAT: tl.constexpr, PARTS: tl.constexpr,
    AHEAD: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x, words, scales: see `quantized_tile`, word_rows: the words without descriptor
    # bias: [N], out: [R, N], partials: [PARTS, R, N] fp32
    # a program makes BLOCK_N outputs of BLOCK_M rows over one part of the inputs; the last one of a tile adds them up
    first_row, first, part = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N, tl.program_id(2)
    admit_next(OVERLAP)
    if OVERLAP and AHEAD > 0:
        prefetch_words(word_rows, first, part, N, K, BLOCK_N, FORMAT, PARTS, AHEAD)
    wait_for_previous(OVERLAP)
    if BLOCK_M <= EARLY_ROWS:
        added = summand(bias, out, first_row, first, R, N, BLOCK_M, BLOCK_N, ADD)
    total = quantized_tile(x, words, scales, first_row, first, part, R, N, K, BLOCK_M, BLOCK_N, FORMAT, PARTS)
    if PARTS > 1:
        row, n = first_row + tl.arange(0, BLOCK_M)[:, None], first + tl.arange(0, BLOCK_N)[None, :]
        inside, own = (row < R) & (n < N), row.to(tl.int64)
        tl.store(partials + (part * R + own) * N + n, total, mask=inside)
        if not last_to_arrive(counter + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), PARTS):
            return
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in tl.static_range(PARTS):
            total += tl.load(partials + (i * R + own) * N + n, mask=inside, other=0.0, cache_modifier=".cg")
    if BLOCK_M > EARLY_ROWS:
        added = summand(bias, out, first_row, first, R, N, BLOCK_M, BLOCK_N, ADD)
    finish(total + added, out, first_row, first, R, N, BLOCK_M, BLOCK_N, GELU)


@triton.jit
def gelu_kernel(y, SIZE, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    # y: [SIZE], in place
    place = y + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) < SIZE
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    tl.store(place, gelu_tanh(tl.load(place, mask=inside).to(tl.float32)), mask=inside)


def launch_linear(
    x: Tensor,
    weight: Tensor | QuantizedMatrix,
    bias: Tensor | None,
    out: Tensor,
    gelu: bool,
    config: VectorConfig | MatrixConfig | QuantizedConfig,
) -> None:
    # x: [R, K], weight: [N, K], bias: [N], None adds to out: [R, N]
    rows, (outputs, inputs) = x.shape[0], weight.shape
    row_blocks, tiles = triton.cdiv(rows, config.block_m), triton.cdiv(outputs, config.block_n)
    fused = {"BLOCK_N": config.block_n, "GELU": gelu, "ADD": bias is None}
    added = out if bias is None else bias
    if isinstance(weight, QuantizedMatrix):
        assert isinstance(config, QuantizedConfig)
        partials = torch.empty(config.parts if config.parts > 1 else 0, rows, outputs, device=x.device)
        quantized_kernel[(row_blocks, tiles, config.parts)](
            x, *quantized_operands(weight, config), weight.words, added, out, partials, counters(x.device),
            rows, outputs, K=inputs, BLOCK_M=config.block_m, FORMAT=weight.format, PARTS=config.parts,
            AHEAD=PREFETCHED_BLOCKS, **fused,
            **launch_options(x.device, config.warps, config.stages),
        )  # fmt: skip
    elif isinstance(config, VectorConfig):
        vector_kernel[(tiles, row_blocks)](
            x, weight, added, out, rows, outputs, K=inputs, ROWS=config.block_m, BLOCK_K=config.block_k, **fused,
            **launch_options(x.device, config.warps, fuses=weight.dtype != torch.float32),
        )  # fmt: skip
    else:
        assert isinstance(config, MatrixConfig)
        matrix_kernel[(row_blocks, tiles)](
            *matrix_operands(x, weight, config), added, out, rows, outputs, triton.cdiv(inputs, config.block_k),
            BLOCK_M=config.block_m, BLOCK_K=config.block_k, **fused,
            **launch_options(x.device, config.warps, config.stages),
        )  # fmt: skip


def launch_gelu(y: Tensor) -> None:
    """Apply the GELU of `linear` in place."""
    size = y.numel()
    gelu_kernel[(triton.cdiv(size, GELU_BLOCK),)](y, size, BLOCK=GELU_BLOCK, **launch_options(y.device, 4))
