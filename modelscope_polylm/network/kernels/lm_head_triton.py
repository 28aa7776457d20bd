"""Kernels of the LM head: a tile of logits is at once reduced to its best tokens and its log-sum-exp."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.configs import LM_HEAD_TILE, MatrixConfig, QuantizedConfig, VectorConfig
from modelscope_polylm.network.kernels.order_triton import admit_next, exact_sum, launch_options, wait_for_previous
from modelscope_polylm.network.kernels.products_triton import matrix_operands, matrix_tile, vector_tile
from modelscope_polylm.network.kernels.quantized_triton import quantized_operands, quantized_tile
from modelscope_polylm.network.quantization import QuantizedMatrix, Weight

# sort key of no token: -inf with the highest id
EMPTY = tl.constexpr((0x807FFFFF - (1 << 32)) << 32)
REDUCED = 64
"""Tiles that one program of `reduce_kernel` reads, whatever is kept of them: sums are then cut at the same places."""
READ_ROWS = 16
"""Rows of logits that a program reads at once."""

Config = VectorConfig | MatrixConfig | QuantizedConfig


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
def log_sum_exp(logits, COUNT: tl.constexpr):
    # logits: [ROWS, COUNT], -inf for tokens that do not exist -> [ROWS]
    highest = tl.max(logits, 1)
    return highest + tl.log(exact_sum(tl.exp(logits - highest[:, None]), COUNT, True))


@triton.jit
def logits_tile(
    hidden, embedding, scales, first_row, first, R, V,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    KIND: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # hidden: [R, K], embedding: [V, K], descriptors if KIND is "matrix", and if it is the name of a format see
    # `quantized_tile`, as for the scales -> [ROWS, BLOCK_N] fp32 for the tokens from `first` on
    admit_next(OVERLAP)
    if KIND == "vector":
        tile = vector_tile(hidden, embedding, first_row, first, R, V, K, ROWS, BLOCK_N, BLOCK_K, OVERLAP)
    elif KIND == "matrix":
        wait_for_previous(OVERLAP)
        tile = matrix_tile(hidden, embedding, first_row, first, tl.cdiv(K, BLOCK_K), ROWS, BLOCK_N, BLOCK_K)
    else:
        wait_for_previous(OVERLAP)
        tile = quantized_tile(hidden, embedding, scales, first_row, first, 0, R, V, K, ROWS, BLOCK_N, KIND, 1)
    return tile


@triton.jit
def keep_candidates(
    logits, values, ids, sums, limit, first_row, tile, tiles, R,
    TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # logits: [ROWS, BLOCK_N] of a tile -> values, ids: [R, tiles, TOP], sums: [R, tiles] log-sum-exp of each tile
    token, row = (tile * BLOCK_N + tl.arange(0, BLOCK_N))[None, :], first_row + tl.arange(0, ROWS)
    # every tile begins below the limit, so the maximum is finite
    logits = tl.where(token < limit, logits, float("-inf"))
    tl.store(sums + row * tiles + tile, log_sum_exp(logits, BLOCK_N), mask=row < R)
    place = (row * tiles + tile) * TOP
    store_best(sort_keys(logits, token), values + place, ids + place, row < R, TOP)


@triton.jit
def candidates_kernel(
    values, ids, sums, limit, hidden, embedding, scales, R, V,
    K: tl.constexpr, TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    KIND: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # values, ids, sums: see `keep_candidates`; hidden, embedding, scales: see `logits_tile`
    # the programs that read the same tile of the embedding run one after the other
    first_row, tile = tl.program_id(0) * ROWS, tl.program_id(1)
    logits = logits_tile(
        hidden, embedding, scales, first_row, tile * BLOCK_N, R, V, K, ROWS, BLOCK_N, BLOCK_K, KIND, OVERLAP,
    )  # fmt: skip
    keep_candidates(logits, values, ids, sums, limit, first_row, tile, tl.num_programs(1), R, TOP, ROWS, BLOCK_N)


@triton.jit
def logits_candidates_kernel(
    values, ids, sums, limit, logits, R, V,
    TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # logits: [R, V] fp32; values, ids, sums: see `keep_candidates`
    first_row, tile = tl.program_id(0) * ROWS, tl.program_id(1)
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    row, token = first_row + tl.arange(0, ROWS)[:, None], tile * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    block = tl.load(logits + row.to(tl.int64) * V + token, mask=(row < R) & (token < V), other=0.0)
    keep_candidates(block, values, ids, sums, limit, first_row, tile, tl.num_programs(1), R, TOP, ROWS, BLOCK_N)


# a kernel that is compiled for one row might sum in another order
@triton.jit(do_not_specialize=["R"])
def logits_kernel(
    logits, limit, hidden, embedding, scales, R, V,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    KIND: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # logits: [R, V] fp32; hidden, embedding, scales: see `logits_tile`
    first_row, first = tl.program_id(0) * ROWS, tl.program_id(1) * BLOCK_N
    tile = logits_tile(
        hidden, embedding, scales, first_row, first, R, V, K, ROWS, BLOCK_N, BLOCK_K, KIND, OVERLAP,
    )  # fmt: skip
    token, row = (first + tl.arange(0, BLOCK_N))[None, :], first_row + tl.arange(0, ROWS)[:, None]
    tile = tl.where(token < limit, tile, float("-inf"))
    tl.store(logits + row.to(tl.int64) * V + token, tile, mask=(row < R) & (token < V))


@triton.jit
def reduce_kernel(
    values, ids, sums, best_values, best_ids, best_sums, tiles,
    TOP: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # values, ids: [R, tiles, TOP], sums: [R, tiles] -> the same of each block of BLOCK tiles; WIDTH >= BLOCK * TOP
    block, row, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    tile = block * BLOCK + tl.arange(0, BLOCK)
    log_sums = tl.load(sums + row * tiles + tile, mask=tile < tiles, other=float("-inf"))[None, :]
    place = row * blocks + block
    room = place + tl.arange(0, 1)
    tl.store(best_sums + room, log_sum_exp(log_sums, BLOCK))
    inside = tl.arange(0, WIDTH)[None, :]
    c = block * BLOCK * TOP + inside
    exists = (inside < BLOCK * TOP) & (c < tiles * TOP)
    value = tl.load(values + row * tiles * TOP + c, mask=exists, other=float("-inf"))
    token = tl.load(ids + row * tiles * TOP + c, mask=exists, other=0x7FFFFFFF)
    store_best(sort_keys(value, token), best_values + room * TOP, best_ids + room * TOP, room >= 0, TOP)


def _arguments(hidden: Tensor, embedding: Weight, config: Config) -> dict[str, Any]:
    # hidden: [R, K], embedding: [V, K] -> arguments that both kernels of the vocabulary share
    rows, inputs = hidden.shape
    shape = {"R": rows, "V": len(embedding), "K": inputs, "ROWS": config.block_m, "BLOCK_N": config.block_n}
    operands: tuple[Any, ...]
    if isinstance(embedding, QuantizedMatrix):
        assert isinstance(config, QuantizedConfig)
        kind, operands = embedding.format, (hidden, *quantized_operands(embedding, config))
    elif isinstance(config, VectorConfig):
        kind, operands = "vector", (hidden, embedding, None)
    else:
        assert isinstance(config, MatrixConfig)
        kind, operands = "matrix", (*matrix_operands(hidden, embedding, config), None)
    block_k = 0 if isinstance(config, QuantizedConfig) else config.block_k
    stages = 1 if isinstance(config, VectorConfig) else config.stages
    named = dict(zip(("hidden", "embedding", "scales"), operands, strict=True))
    options = launch_options(hidden.device, config.warps, stages, fuses=kind != "vector")
    return {**shape, **named, "KIND": kind, "BLOCK_K": block_k, **options}


def launch_topk(
    hidden: Tensor, embedding: Weight, top: int, limit: int, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    # hidden: [R, K], embedding: [V, K] -> values, ids: [R, top], log-sum-exp: [R]
    rows, tiles = hidden.shape[0], triton.cdiv(limit, config.block_n)
    results = _room(rows, tiles, top, hidden.device)
    grid = (triton.cdiv(rows, config.block_m), tiles)
    candidates_kernel[grid](*results, limit, TOP=top, **_arguments(hidden, embedding, config))
    return _reduced(results, top)


def launch_topk_of_logits(logits: Tensor, top: int, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    # logits: [R, V] fp32 -> as `launch_topk`
    rows, tiles = logits.shape[0], triton.cdiv(limit, LM_HEAD_TILE)
    results = _room(rows, tiles, top, logits.device)
    logits_candidates_kernel[(triton.cdiv(rows, READ_ROWS), tiles)](
        *results, limit, logits, *logits.shape,
        TOP=top, ROWS=READ_ROWS, BLOCK_N=LM_HEAD_TILE, **launch_options(logits.device, 4),
    )  # fmt: skip
    return _reduced(results, top)


def _reduced(results: tuple[Tensor, Tensor, Tensor], top: int) -> tuple[Tensor, Tensor, Tensor]:
    # values, ids: [R, tiles, top], log-sum-exp: [R, tiles] -> [R, top], [R, top], [R]
    rows, tiles = results[2].shape
    while tiles > 1:
        blocks = triton.cdiv(tiles, REDUCED)
        reduced = _room(rows, blocks, top, results[2].device)
        reduce_kernel[(blocks, rows)](
            *results, *reduced, tiles,
            TOP=top, BLOCK=REDUCED, WIDTH=triton.next_power_of_2(REDUCED * top),
            **launch_options(results[2].device, 4),
        )  # fmt: skip
        results, tiles = reduced, blocks
    values, ids, sums = results
    return values.view(rows, top), ids.view(rows, top), sums.view(rows)


def _room(rows: int, tiles: int, top: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    # -> values, ids: [R, tiles, TOP], log-sum-exp: [R, tiles]
    return (
        torch.empty(rows, tiles, top, dtype=torch.float32, device=device),
        torch.empty(rows, tiles, top, dtype=torch.int32, device=device),
        torch.empty(rows, tiles, dtype=torch.float32, device=device),
    )


def launch_logits(hidden: Tensor, embedding: Weight, limit: int, config: Config) -> Tensor:
    # hidden: [R, K], embedding: [V, K] -> [R, V] fp32
    rows, tokens = len(hidden), len(embedding)
    logits = torch.empty(rows, tokens, dtype=torch.float32, device=hidden.device)
    grid = (triton.cdiv(rows, config.block_m), triton.cdiv(tokens, config.block_n))
    logits_kernel[grid](logits, limit, **_arguments(hidden, embedding, config))
    return logits
