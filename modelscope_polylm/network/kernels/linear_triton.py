"""Kernels of `linear` and `add_product_`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig, matrix_rows
from modelscope_polylm.network.kernels.dispatch import counters, multiprocessors
from modelscope_polylm.network.kernels.order_triton import (
    admit_next,
    last_to_arrive,
    launch_options,
    wait_for_previous,
)
from modelscope_polylm.network.kernels.products_triton import matrix_operands, matrix_tile, vector_tile


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
def first_block(program, every):
    # of all `every` blocks of K of all tiles, the first of a program's
    return program * every // tl.num_programs(0)


@triton.jit
def partial_place(program, tile, every, BLOCKS):
    # a program keeps parts of the tile that it begins with and of one after it
    return program * 2 + (first_block(program, every) // BLOCKS != tile).to(tl.int32)


@triton.jit
def combine(
    total, tile, every, bias, out, partials, counter, R, N, BLOCKS,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    # total: [BLOCK_M, BLOCK_N] fp32, one program's part of a tile; the last of the tile's programs adds all parts
    # partials: [programs, 2, BLOCK_M, BLOCK_N] fp32
    programs = tl.num_programs(0)
    SIZE: tl.constexpr = BLOCK_M * BLOCK_N
    cell = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(partials + partial_place(tl.program_id(0), tile, every, BLOCKS) * SIZE + cell, total)
    first = ((tile * BLOCKS + 1) * programs - 1) // every
    last = ((tile + 1) * BLOCKS * programs - 1) // every
    if last_to_arrive(counter + tile, last - first + 1):
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for other in range(first, last + 1):
            place = partials + partial_place(other, tile, every, BLOCKS) * SIZE
            total += tl.load(place + cell, cache_modifier=".cg")
        finish(total, bias, out, tile * BLOCK_N + tl.arange(0, BLOCK_N), R, N, BLOCK_M, GELU, ADD)


@triton.jit
def matrix_kernel(
    x, weight, bias, out, partials, counter, R, N, BLOCKS,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GELU: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x, weight: see `matrix_tile`, bias: [N], out: [R, N], counter: [tiles]
    # the programs share the BLOCKS blocks of K of all tiles, in order and evenly: one tile each, or parts of some
    every = tl.cdiv(N, BLOCK_N) * BLOCKS
    at, end = first_block(tl.program_id(0), every), first_block(tl.program_id(0) + 1, every)
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    while at < end:
        tile = at // BLOCKS
        begin = at - tile * BLOCKS
        stop = tl.minimum(BLOCKS, begin + end - at)
        total = matrix_tile(x, weight, tile * BLOCK_N, begin, stop, BLOCK_M, BLOCK_N, BLOCK_K)
        if stop - begin == BLOCKS:
            finish(total, bias, out, tile * BLOCK_N + tl.arange(0, BLOCK_N), R, N, BLOCK_M, GELU, ADD)
        else:
            combine(total, tile, every, bias, out, partials, counter, R, N, BLOCKS, BLOCK_M, BLOCK_N, GELU, ADD)
        at += stop - begin


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
    tiles, blocks = triton.cdiv(outputs, config.block_n), triton.cdiv(inputs, config.block_k)
    programs = min(multiprocessors(x.device), tiles * blocks) if config.even else tiles
    block_m = matrix_rows(rows)
    shape = (programs, 2, block_m, config.block_n) if config.even else (0,)
    partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    matrix_kernel[(programs,)](
        *matrix_operands(x, weight, config), out if bias is None else bias, out, partials, counters(x.device),
        rows, outputs, blocks, BLOCK_M=block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        GELU=gelu, ADD=bias is None, **launch_options(x.device, config.warps, config.stages),
    )  # fmt: skip
