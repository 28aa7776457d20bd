"""Block shapes of the kernels, from small tables; nothing is tuned at run time.

The 16-bit choices were tuned on an NVIDIA H200 and, the matrix-unit ones, on an H100, with the 13B shape: they are
those that made a whole captured step fast, which are not always the fastest alone (benchmarks/HISTORY.md). Cards with
less shared memory take fewer stages of the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from modelscope_polylm.network.kernels.dispatch import multiprocessors, shared_memory


@dataclass(frozen=True)
class VectorConfig:
    """Multiply-add kernel for a few rows: a program makes block_n outputs, block_k inputs at a time.

    block_k = 256 * warps lets every thread read each weight row once, 16 bytes at a time, and each input once.
    """

    block_n: int
    block_k: int
    warps: int


@dataclass(frozen=True)
class MatrixConfig:
    """Matrix-unit kernel for 2 to 64 rows: tiles of block_n outputs, block_k inputs at a time.

    A tile is made by one program; if `even`, all multiprocessors share all tiles' blocks evenly.
    """

    block_n: int
    block_k: int
    warps: int
    stages: int
    even: bool = False

    def shared_bytes(self, rows: int) -> int:
        """What the pipelined reads of weights and inputs keep in shared memory, in 16 bits."""
        return self.stages * (self.block_n + matrix_rows(rows)) * self.block_k * 2


def matrix_rows(rows: int) -> int:
    """Rows of the inputs' blocks in a matrix-unit kernel: a power of two, at least the 16 of those units."""
    return max(16, 1 << (rows - 1).bit_length())


@dataclass(frozen=True)
class AttentionConfig:
    """Decode attention: a row's blocks of `block_t` keys go to at most `splits` programs, `min_units` or more each.

    A group, which has more blocks, gets as many for each of its rows, but at most `group_splits`. Only block_t decides
    about the bits of the result. `registers` of a thread at most, so that more programs run at once.
    """

    block_t: int
    warps: int
    splits: int
    group_splits: int
    min_units: int = 1
    registers: int = 168


@dataclass(frozen=True)
class PrefillAttentionConfig:
    """Prefill attention: `block_m` tokens a program, `block_t` keys at a time, `stages` blocks on their way.

    Only block_t decides about the bits of the result.
    """

    block_m: int
    block_t: int
    warps: int
    stages: int


# most rows and the configuration up to there
# projections are told apart by their proportions
MATRIX_CONFIGS: dict[str, tuple[tuple[int, MatrixConfig], ...]] = {
    "c_attn": ((64, MatrixConfig(64, 128, 4, stages=3)),),
    "attn.c_proj": ((64, MatrixConfig(64, 128, 4, stages=6)),),
    "c_fc": (
        (8, MatrixConfig(64, 128, 4, stages=3)),
        (64, MatrixConfig(64, 128, 4, stages=6)),
    ),
    "mlp.c_proj": (
        (32, MatrixConfig(64, 128, 4, stages=6, even=True)),
        (64, MatrixConfig(64, 128, 4, stages=6)),
    ),
}


def choose_linear(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> VectorConfig | MatrixConfig | None:
    """The kernel for x [rows <= 64, inputs] @ weight [outputs, inputs]; None where the library product is as good."""
    if dtype == torch.float32:
        return VectorConfig(block_n=4, block_k=512, warps=4) if rows <= 8 else None
    if rows <= 2:
        return VectorConfig(block_n=4, block_k=1024, warps=4)
    table = MATRIX_CONFIGS[_projection(outputs, inputs)]
    return _fitting(next(config for most, config in table if rows <= most), rows, device)


def _fitting(config: MatrixConfig, rows: int, device: torch.device) -> MatrixConfig:
    room = shared_memory(device)
    while config.shared_bytes(rows) > room and config.stages > 2:
        config = replace(config, stages=config.stages - 1)
    while config.shared_bytes(rows) > room:
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


def choose_attention(rows: int, groups: int, heads: int, dtype: torch.dtype, device: torch.device) -> AttentionConfig:
    """Cuts long rows so that few of them fill the card; independent of the lengths, which grow on the device."""
    splits = max(1, min(13, round(2.5 * multiprocessors(device) / (groups * heads))))
    # many groups of one row fill the card as they are, and programs without work cost time, too
    group_splits = min(24, 4 * splits) if rows < 64 or groups < rows else splits
    return AttentionConfig(key_block(dtype), warps=4, splits=splits, group_splits=group_splits)


def choose_prefill_attention(dtype: torch.dtype) -> PrefillAttentionConfig:
    """For segments of any length."""
    if dtype == torch.float32:
        return PrefillAttentionConfig(16, key_block(dtype), warps=4, stages=1)
    return PrefillAttentionConfig(64, key_block(dtype), warps=4, stages=3)


def choose_output(rows: int, top: int, dtype: torch.dtype, device: torch.device) -> VectorConfig | MatrixConfig | None:
    """The kernel for hidden [rows, D] @ embedding [V, D]; a tile holds many more tokens than it keeps."""
    if dtype == torch.float32:
        return VectorConfig(block_n=16, block_k=256, warps=4) if rows <= 4 else None
    if rows == 1 and top == 1:
        return VectorConfig(block_n=8, block_k=1024, warps=4)
    # what many rows keep of a tile is sorted out by more warps
    blocks = (128, 128, 4) if rows <= 32 else (128, 64, 8)
    return _fitting(MatrixConfig(*blocks, stages=4), rows, device)
