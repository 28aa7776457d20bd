"""Kernels of the output layer: a tile of logits is at once reduced to its best tokens and its log-sum-exp."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous
from modelscope_polylm.network.kernels.products_triton import matrix_tile, vector_tile

# sort key of a place without a token: -inf with the highest id
EMPTY = tl.constexpr((0x807FFFFF - (1 << 32)) << 32)


@triton.jit
def sort_keys(values, ids):
    # values: fp32, ids: int32 -> int64 that order by value, then by lower id
    bits = values.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def key_values(keys):
    # inverse of sort_keys
    ordered = (keys >> 32).to(tl.int32)
    values = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
    return values, 0x7FFFFFFF - (keys & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def store_best(keys, values, ids, stored, TOP: tl.constexpr):
    # keys: [ROWS, BLOCK] int64; values, ids: [ROWS] pointers to room for TOP, best first; no token: -inf and id 0
    for rank in tl.static_range(TOP):
        best = tl.max(keys, 1)
        value, token = key_values(best)
        tl.store(values + rank, value, mask=stored)
        tl.store(ids + rank, tl.where(value == float("-inf"), 0, token), mask=stored)
        keys = tl.where(keys == best[:, None], EMPTY, keys)


@triton.jit
def logits_tile(
    hidden, embedding, first, R, V,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    MATRIX: tl.constexpr, SWAP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # hidden: [R, K], embedding: [V, K] -> [ROWS, BLOCK_N] fp32 for tokens first..first+BLOCK_N-1
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    if MATRIX:
        tile = matrix_tile(hidden, embedding, first, R, V, 0, K, 1, ROWS, BLOCK_N, BLOCK_K, SWAP)
    else:
        tile = vector_tile(hidden, embedding, first, R, V, K, ROWS, BLOCK_N, BLOCK_K, STAGES)
    return tile


@triton.jit
def candidates_kernel(
    hidden, embedding, values, ids, sums, R, V, limit,
    K: tl.constexpr, TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, MATRIX: tl.constexpr, SWAP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # hidden: [R, K], embedding: [V, K], values, ids: [R, tiles * TOP], sums: [R, tiles] log-sum-exp of each tile
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    first = tile * BLOCK_N
    logits = logits_tile(hidden, embedding, first, R, V, K, ROWS, BLOCK_N, BLOCK_K, STAGES, MATRIX, SWAP, OVERLAP)
    token = (first + tl.arange(0, BLOCK_N))[None, :]
    row = tl.arange(0, ROWS)
    logits = tl.where(token < limit, logits, float("-inf"))
    # every tile begins below the limit, so the maximum is finite
    highest = tl.max(logits, 1)
    total = tl.sum(tl.exp(logits - highest[:, None]), 1)
    tl.store(sums + row * tiles + tile, highest + tl.log(total), mask=row < R)
    place = (row * tiles + tile) * TOP
    store_best(sort_keys(logits, token), values + place, ids + place, row < R, TOP)


@triton.jit
def logits_kernel(
    hidden, embedding, logits, R, V, limit,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    MATRIX: tl.constexpr, SWAP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # hidden: [R, K], embedding: [V, K], logits: [R, V] fp32
    first = tl.program_id(0) * BLOCK_N
    tile = logits_tile(hidden, embedding, first, R, V, K, ROWS, BLOCK_N, BLOCK_K, STAGES, MATRIX, SWAP, OVERLAP)
    token, row = (first + tl.arange(0, BLOCK_N))[None, :], tl.arange(0, ROWS)[:, None]
    tile = tl.where(token < limit, tile, float("-inf"))
    tl.store(logits + row.to(tl.int64) * V + token, tile, mask=(row < R) & (token < V))


@triton.jit
def best_kernel(values, ids, best_values, best_ids, C, TOP: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    # values, ids: [R, C] -> best TOP of each block of BLOCK: [R, blocks * TOP]
    block, row, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    c = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    value = tl.load(values + row * C + c, mask=c < C, other=float("-inf"))
    token = tl.load(ids + row * C + c, mask=c < C, other=0x7FFFFFFF)
    place = (row * blocks + block) * TOP + tl.arange(0, 1)
    store_best(sort_keys(value, token), best_values + place, best_ids + place, tl.arange(0, 1) < 1, TOP)


@triton.jit
def log_sum_kernel(sums, out, C, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    # sums: [R, C] -> out: [R], log of the sum of their exponentials
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    row = tl.program_id(0)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, C, BLOCK):
        c = start + tl.arange(0, BLOCK)
        value = tl.load(sums + row * C + c, mask=c < C, other=float("-inf"))
        after = tl.maximum(highest, value)
        total = tl.where(highest == after, total, total * tl.exp(highest - after))
        total += tl.where(c < C, tl.exp(value - after), 0.0)
        highest = after
    top = tl.max(highest, 0)
    total = tl.where(highest == float("-inf"), 0.0, total * tl.exp(highest - top))
    tl.store(out + row, top + tl.log(tl.sum(total, 0)))


def _tile_arguments(hidden: Tensor, embedding: Tensor, config: VectorConfig | MatrixConfig) -> dict[str, Any]:
    # hidden: [R, K], embedding: [V, K] -> arguments that both kernels of the vocabulary share
    rows, inputs = hidden.shape
    matrix = isinstance(config, MatrixConfig)
    return dict(
        K=inputs,
        ROWS=max(16 if matrix else 1, triton.next_power_of_2(rows)),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        STAGES=config.stages,
        MATRIX=matrix,
        SWAP=isinstance(config, MatrixConfig) and config.swap,
        **launch_options(hidden.device, config.warps, config.stages if matrix else 1),
    )


def launch_candidates(
    hidden: Tensor, embedding: Tensor, top: int, limit: int, config: VectorConfig | MatrixConfig
) -> tuple[Tensor, Tensor, Tensor]:
    # hidden: [R, K], embedding: [V, K] -> values, ids: [R, C], log-sum-exp: [R]
    rows, device = hidden.shape[0], hidden.device
    tiles = triton.cdiv(limit, config.block_n)
    values = torch.empty(rows, tiles * top, dtype=torch.float32, device=device)
    ids = torch.empty(rows, tiles * top, dtype=torch.int32, device=device)
    sums = torch.empty(rows, tiles, dtype=torch.float32, device=device)
    log_sum = torch.empty(rows, dtype=torch.float32, device=device)
    candidates_kernel[(tiles,)](
        hidden, embedding, values, ids, sums, rows, embedding.shape[0], limit,
        TOP=top, **_tile_arguments(hidden, embedding, config),
    )  # fmt: skip
    log_sum_kernel[(rows,)](sums, log_sum, tiles, BLOCK=2048, **launch_options(device, 8))
    return values, ids, log_sum


def launch_logits(hidden: Tensor, embedding: Tensor, limit: int, config: VectorConfig | MatrixConfig) -> Tensor:
    # hidden: [R, K], embedding: [V, K] -> [R, V] fp32
    rows, tokens = hidden.shape[0], embedding.shape[0]
    logits = torch.empty(rows, tokens, dtype=torch.float32, device=hidden.device)
    logits_kernel[(triton.cdiv(tokens, config.block_n),)](
        hidden, embedding, logits, rows, tokens, limit, **_tile_arguments(hidden, embedding, config)
    )
    return logits


def launch_best(values: Tensor, ids: Tensor, top: int, block: int = 4096) -> tuple[Tensor, Tensor]:
    # values, ids: [R, C] -> [R, top]; each pass keeps the best of every block
    rows = values.shape[0]
    while True:
        blocks = triton.cdiv(values.shape[1], block)
        best_values = torch.empty(rows, blocks * top, dtype=torch.float32, device=values.device)
        best_ids = torch.empty(rows, blocks * top, dtype=torch.int32, device=values.device)
        best_kernel[(blocks, rows)](
            values, ids, best_values, best_ids, values.shape[1],
            TOP=top, BLOCK=block, **launch_options(values.device, 8),
        )  # fmt: skip
        values, ids = best_values, best_ids
        if blocks == 1:
            return values, ids
