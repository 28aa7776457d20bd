"""Block shapes of the kernels, from small tables; nothing is tuned at run time.

The 16-bit choices were tuned on an NVIDIA H200 and, the matrix-unit ones, on an H100, with the 13B shape: they are
those that made a whole captured step fast, which are not always the fastest alone (benchmarks/HISTORY.md). Cards with
less shared memory take fewer stages of the same blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from modelscope_polylm.network.kernels.dispatch import multiprocessors, settings, shared_memory
from modelscope_polylm.network.quantization import BLOCK_WORDS, FORMATS, QuantizedMatrix

MAX_ROWS = 64
"""Rows up to which our products in 16 bits are faster than the library's."""

UNCUT_ROWS = 512
"""From so many rows on the library cuts the inputs of no projection."""

MAX_FP32_ROWS, MAX_FP32_LM_HEAD_ROWS = 8, 4
"""The same in fp32, where the library is only left out for more rows if results must be deterministic."""

QUANTIZED_PROGRAMS = {"int8": 320, "fp8": 320, "int4": 400}
"""Programs for one block of rows that the inputs are shared out to: about three on each multiprocessor of an H100, as
the others read while one unpacks."""
MAX_QUANTIZED_ROWS = 64
"""Rows up to which unpacking weights in registers is faster than a library's product with plain numbers of them."""


@dataclass(frozen=True)
class VectorConfig:
    """Multiply-add kernel: a program makes block_n outputs of block_m rows, block_k inputs at a time.

    block_k and warps decide about the bits of the result.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int


@dataclass(frozen=True)
class MatrixConfig:
    """Matrix-unit kernel: a program makes block_n outputs of block_m rows, block_k inputs at a time.

    `stages` blocks of inputs are on their way at once. Nothing here decides about the bits of the result.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        """What the pipelined reads of weights and inputs keep in shared memory, in 16 bits."""
        return self.stages * (self.block_n + self.block_m) * self.block_k * 2


@dataclass(frozen=True)
class QuantizedConfig:
    """Matrix-unit kernel over weights of 8 or 4 bits: block_n outputs of block_m rows, a block of words at a time.

    `stages` blocks of words and their inputs are on their way at once. The inputs are shared by `parts` programs, whose
    sums are then added up in order. Only `parts` decides about the bits of the result.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    parts: int = 1

    def shared_bytes(self, streams: int, itemsize: int) -> int:
        """What the pipelined reads keep in shared memory, with `streams` weights in a word.

        Words leave it for registers as soon as they are there, so a stage less of them is kept.
        """
        words, inputs = 4 * self.block_n, streams * self.block_m * itemsize
        return BLOCK_WORDS * (max(1, self.stages - 1) * words + self.stages * inputs)


@dataclass(frozen=True)
class AttentionConfig:
    """Decode attention: a row's blocks of `block_t` keys go to at most `splits` programs, `min_units` or more each.

    A group, which has more blocks, gets as many for each of its rows, but at most `group_splits`. A thread has at most
    `registers`, so that more programs run at once. Only block_t decides about the bits of the result.
    """

    block_t: int
    warps: int
    splits: int
    group_splits: int
    min_units: int = 1
    registers: int = 168
    stages: int = 1


@dataclass(frozen=True)
class PrefillAttentionConfig:
    """Prefill attention: `block_m` tokens a program, `block_t` keys at a time, `stages` blocks on their way.

    Only block_t decides about the bits of the result.
    """

    block_m: int
    block_t: int
    warps: int
    stages: int


LM_HEAD_TILE = 128
"""Tokens of a tile of the LM head in 16 bits, for all numbers of rows: a log-sum-exp is taken of each tile first."""
Blocks = tuple[int, int, int, int]

# most rows, and block_n, block_k, warps and stages up to there; projections are told apart by their proportions
MATRIX_BLOCKS: dict[str, tuple[tuple[int, Blocks], ...]] = {
    "c_attn": ((16, (64, 128, 4, 4)), (64, (128, 64, 4, 6))),
    "attn.c_proj": ((16, (64, 256, 4, 4)), (64, (64, 128, 4, 6))),
    "c_fc": ((16, (64, 128, 4, 4)), (64, (64, 128, 4, 6))),
    "mlp.c_proj": ((16, (64, 256, 4, 4)), (64, (64, 128, 4, 6))),
}

QuantizedBlocks = tuple[int, int, int]
Chosen = TypeVar("Chosen", Blocks, QuantizedBlocks)

# most rows, and block_n, warps and stages up to there; tuned on an H100. Below 64 outputs, or four warps, Triton takes
# the warps' own matrix instruction, which needs no barrier
EIGHT_BIT_BLOCKS: tuple[tuple[int, QuantizedBlocks], ...] = ((16, (64, 4, 3)), (64, (64, 4, 2)))
INT4_BLOCKS: dict[str, tuple[tuple[int, QuantizedBlocks], ...]] = {
    "c_attn": ((8, (32, 2, 4)), (16, (64, 4, 3)), (64, (128, 8, 2))),
    "attn.c_proj": ((16, (64, 2, 2)), (64, (128, 8, 2))),
    "c_fc": ((8, (64, 4, 3)), (16, (64, 2, 3)), (64, (64, 4, 3))),
    "mlp.c_proj": ((8, (64, 2, 3)), (16, (64, 2, 2)), (64, (128, 8, 2))),
}


def choose_linear(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> VectorConfig | MatrixConfig:
    """The kernel for x [rows, inputs] @ weight [outputs, inputs]."""
    if dtype == torch.float32 or (rows <= 2 and not settings.deterministic):
        return VectorConfig(_power_of_two(rows, 1, 8), block_n=4, block_k=1024, warps=4)
    blocks = _blocks_for(rows, MATRIX_BLOCKS[_projection(outputs, inputs)])
    return _fitting(MatrixConfig(_power_of_two(rows, 16, 64), *blocks), device)


def prefers_library(rows: int, dtype: torch.dtype, fp32_rows: int = MAX_FP32_ROWS) -> bool:
    """Whether the library's product is faster on CUDA and, if results must be deterministic, can give the same bits."""
    if dtype == torch.float32:
        return rows > fp32_rows and not settings.deterministic
    return rows > MAX_ROWS


def takes_quantized(rows: int) -> bool:
    """Whether a product unpacks weights in registers; beyond, plain numbers give other bits."""
    return rows <= MAX_QUANTIZED_ROWS or settings.deterministic


def choose_quantized(rows: int, matrix: QuantizedMatrix, device: torch.device) -> QuantizedConfig:
    """The kernel for x [rows, inputs] @ matrix [outputs, inputs]."""
    is_int4 = matrix.format == "int4"
    table = INT4_BLOCKS[_projection(*matrix.shape)] if is_int4 else EIGHT_BIT_BLOCKS
    block_m = _power_of_two(rows, 8 if is_int4 else 16, 64)
    config = QuantizedConfig(block_m, *_blocks_for(rows, table), quantized_parts(matrix))
    return _fitting_quantized(config, matrix, device)


def quantized_parts(matrix: QuantizedMatrix) -> int:
    """Programs that share the inputs of a tile: independent of the rows and of the card, as bits depend on it."""
    blocks = matrix.words.shape[1] // BLOCK_WORDS
    wanted = max(1, min(blocks, QUANTIZED_PROGRAMS[matrix.format] // -(-len(matrix) // 64)))
    return -(-blocks // -(-blocks // wanted))


def choose_quantized_lm_head(rows: int, matrix: QuantizedMatrix, device: torch.device) -> QuantizedConfig:
    """The kernel for hidden [rows, D] @ embedding [V, D]; its tiles are those of 16 bits."""
    config = QuantizedConfig(_power_of_two(rows, 16, 64), LM_HEAD_TILE, 4 if rows <= 32 else 8, 3)
    return _fitting_quantized(config, matrix, device)


def _fitting_quantized(config: QuantizedConfig, matrix: QuantizedMatrix, device: torch.device) -> QuantizedConfig:
    room, streams, itemsize = shared_memory(device), FORMATS[matrix.format].streams, matrix.dtype.itemsize
    while config.shared_bytes(streams, itemsize) > room and config.stages > 2:
        config = replace(config, stages=config.stages - 1)
    while config.shared_bytes(streams, itemsize) > room and config.block_m > 16:
        config = replace(config, block_m=config.block_m // 2)
    # without a pipeline one operand after the other is there
    return config if config.shared_bytes(streams, itemsize) <= room else replace(config, stages=1)


def library_rows(rows: int, outputs: int, inputs: int) -> int:
    """How many rows to hand to the library's product in 16 bits, so that it has the bits of ours if it must.

    It sums each output over all inputs in one go, except where inputs are more than outputs and rows are few. Read off
    cuBLAS 13 on an H200 for the shapes of 13B and 1.7B and for 65 to 8,192 rows (tests, `-m gpu`).
    """
    return max(rows, UNCUT_ROWS) if settings.deterministic and inputs > outputs else rows


def _blocks_for(rows: int, table: Sequence[tuple[int, Chosen]]) -> Chosen:
    """The first whose most rows are not fewer, or the last."""
    return next((blocks for most, blocks in table if rows <= most), table[-1][1])


def _power_of_two(rows: int, least: int, most: int) -> int:
    return min(most, max(least, 1 << (rows - 1).bit_length()))


def _fitting(config: MatrixConfig, device: torch.device) -> MatrixConfig:
    room = shared_memory(device)
    while config.shared_bytes > room and config.stages > 2:
        config = replace(config, stages=config.stages - 1)
    while config.shared_bytes > room:
        config = replace(config, block_k=config.block_k // 2)
    return config


def _projection(outputs: int, inputs: int) -> str:
    if outputs >= 4 * inputs:
        return "c_fc"
    if inputs >= 4 * outputs:
        return "mlp.c_proj"
    return "c_attn" if outputs == 3 * inputs else "attn.c_proj"


def key_block(dtype: torch.dtype) -> int:
    """Keys of a block of attention, the same in prefill and decode: their results are equal bit by bit."""
    return 32 if dtype == torch.float32 else 64


def choose_attention(
    rows: int, groups: int, heads: int, dtype: torch.dtype, device: torch.device, is_int8: bool = False
) -> AttentionConfig:
    """Cuts long rows so that few of them fill the card; independent of the lengths, which grow on the device.

    In 16 bits, of 9 rows and more several programs share a multiprocessor: two warps and keys on their way made a layer
    of 64 rows take 259 us instead of 285, and one of 256 rows 586 instead of 685 (H200, 192 cached tokens; Triton 3.6).
    Keys and values of an int8 cache pass through registers, and are not on their way. With Triton 3.9 none are: its
    pipeliner fails where slots are read a block ahead of their keys.
    """
    splits = max(1, min(13, round(2.5 * multiprocessors(device) / (groups * heads))))
    # many groups of one row fill the card as they are, and programs without work cost time, too
    group_splits = min(24, 4 * splits) if rows < 64 or groups < rows else splits
    if dtype == torch.float32:
        return AttentionConfig(key_block(dtype), 4, splits, group_splits, registers=255)
    if rows <= 8:
        return AttentionConfig(key_block(dtype), 4, splits, group_splits, registers=254 if rows <= 2 else 128)
    if is_int8:
        return AttentionConfig(key_block(dtype), 4, splits, group_splits, registers=128)
    stages = 2 if _triton_version() < (3, 9) else 1
    return AttentionConfig(key_block(dtype), 2, splits, group_splits, registers=168, stages=stages)


@functools.cache
def _triton_version() -> tuple[int, ...]:
    """Major and minor version of the Triton that compiles the kernels; (0, 0) if there is none."""
    try:
        import triton
    except ImportError:
        return (0, 0)
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def choose_prefill_attention(dtype: torch.dtype, is_int8: bool = False) -> PrefillAttentionConfig:
    """For segments of any length; an int8 cache is unpacked through shared memory, which leaves less for stages."""
    if dtype == torch.float32:
        return PrefillAttentionConfig(16, key_block(dtype), warps=4, stages=1)
    return PrefillAttentionConfig(64, key_block(dtype), warps=4, stages=2 if is_int8 else 3)


def choose_lm_head(rows: int, dtype: torch.dtype, device: torch.device) -> VectorConfig | MatrixConfig:
    """The kernel for hidden [rows, D] @ embedding [V, D]; a tile holds many more tokens than it keeps."""
    if dtype == torch.float32:
        # one shape for all numbers of rows: two rows at once gave other bits than four
        return VectorConfig(block_m=4, block_n=16, block_k=256, warps=4)
    # what many rows keep of a tile is sorted out by more warps
    rest = (128, 4, 4) if rows <= 32 else (64, 8, 4)
    return _fitting(MatrixConfig(_power_of_two(rows, 16, 64), LM_HEAD_TILE, *rest), device)
