"""Kernels of `linear` and `add_product_`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import counters
from modelscope_polylm.network.kernels.order_triton import (
    admit_next,
    last_to_arrive,
    launch_options,
)
from modelscope_polylm.network.kernels.products_triton import matrix_tile, vector_tile


@triton.jit
def finish(total, bias, out, n, R, N, ROWS: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr):
    # total: [ROWS, BLOCK_N] fp32 at columns n: [BLOCK_N]; out: [R, N]; ADD: it is added to, and there is no bias
    row = tl.arange(0, ROWS)[:, None]
    inside = (row < R) & (n < N)[None, :]
    place = out + row * N + n[None, :]
    if ADD:
        y = total + tl.load(place, mask=inside, other=0.0)
    else:
        y = total + tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        # y * (1 + tanh(u)) / 2 = y * sigmoid(2 u) with u = sqrt(2 / pi) (y + 0.044715 y^3)
        y = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))
    tl.store(place, y, mask=inside)


@triton.jit
def vector_kernel(
    x, weight, bias, out, R, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GELU: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, K], weight: [N, K], bias: [N], out: [R, N]; a program makes BLOCK_N outputs
    first = tl.program_id(0) * BLOCK_N
    admit_next(OVERLAP)
    total = vector_tile(x, weight, first, R, N, K, ROWS, BLOCK_N, BLOCK_K, OVERLAP)
    finish(total, bias, out, first + tl.arange(0, BLOCK_N), R, N, ROWS, GELU, ADD)


@triton.jit
def matrix_kernel(
    x, weight, bias, out, partials, counter, R, N,
    K: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, K], weight: [N, K], bias: [N], out: [R, N]
    # partials: [tiles, PARTS, BLOCK_M, BLOCK_N] fp32, counter: [tiles]; a program makes one part of BLOCK_N outputs
    part, tile = tl.program_id(0), tl.program_id(1)
    first = tile * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    admit_next(OVERLAP)
    total = matrix_tile(x, weight, first, R, N, part, K, PARTS, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, OVERLAP)
    if PARTS == 1:
        finish(total, bias, out, n, R, N, BLOCK_M, GELU, ADD)
    else:
        SIZE: tl.constexpr = BLOCK_M * BLOCK_N
        cell = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partials + tile * PARTS * SIZE + cell
        tl.store(parts + part * SIZE, total)
        if last_to_arrive(counter + tile, PARTS):
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for other in tl.static_range(PARTS):
                total += tl.load(parts + other * SIZE, cache_modifier=".cg")
            finish(total, bias, out, n, R, N, BLOCK_M, GELU, ADD)


def launch_vector(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, gelu: bool, config: VectorConfig
) -> None:
    # x: [R, K], weight: [N, K], bias: [N], None adds to out: [R, N]
    rows, (outputs, inputs) = x.shape[0], weight.shape
    vector_kernel[(triton.cdiv(outputs, config.block_n),)](
        x, weight, out if bias is None else bias, out, rows, outputs,
        K=inputs, ROWS=triton.next_power_of_2(rows), BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        GELU=gelu, ADD=bias is None, **launch_options(x.device, config.warps),
    )  # fmt: skip


def launch_matrix(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, gelu: bool, config: MatrixConfig
) -> None:
    # x: [R, K], weight: [N, K], bias: [N], None adds to out: [R, N]
    rows, (outputs, inputs) = x.shape[0], weight.shape
    block_m = max(16, triton.next_power_of_2(rows))
    tiles = triton.cdiv(outputs, config.block_n)
    shape = (tiles, config.parts, block_m, config.block_n) if config.parts > 1 else (0,)
    partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    matrix_kernel[(config.parts, tiles)](
        x, weight, out if bias is None else bias, out, partials, counters(x.device), rows, outputs,
        K=inputs, PARTS=config.parts, BLOCK_M=block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        SWAP=config.swap, GELU=gelu, ADD=bias is None, **launch_options(x.device, config.warps, config.stages),
    )  # fmt: skip
