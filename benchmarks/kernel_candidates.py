"""Configurations worth trying: a wide net for kernels timed alone, a narrow one for tuning inside a whole step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.kernel_setting import PRODUCTS, Setting, Shape
from modelscope_polylm.network.kernels.configs import (
    AttentionConfig,
    MatrixConfig,
    PrefillAttentionConfig,
    VectorConfig,
    choose_attention,
)

Config = VectorConfig | MatrixConfig | AttentionConfig | PrefillAttentionConfig
SHARED_MEMORY = 200_000


def _fits(config: MatrixConfig, rows: int) -> bool:
    return config.stages * (config.block_n + max(16, rows)) * config.block_k * 2 <= SHARED_MEMORY


def product_sweep(setting: Setting, rows: int) -> list[Config]:
    """For a projection timed alone."""
    if setting.device.type == "cpu":
        return [VectorConfig(8, 32, 1), MatrixConfig(16, 32, 4, 2)]
    configs: list[Config] = []
    if rows <= 8:
        for block_n, warps in itertools.product((2, 4, 8), (2, 4, 8)):
            if rows * block_n <= 32:
                configs.append(VectorConfig(block_n, 256 * warps, warps))
    if rows >= 2:
        configs += _matrix_configs(rows)
    return configs


def _matrix_configs(rows: int) -> list[MatrixConfig]:
    few = ((64, 128, 4), (64, 256, 4), (128, 64, 4), (128, 128, 4), (64, 64, 4))
    many = ((64, 128, 4), (64, 64, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8), (256, 64, 8))
    blocks = itertools.product(few if rows <= 16 else many, (3, 4, 6), (False, True))
    tried = (MatrixConfig(*block, stages, even) for block, stages, even in blocks)
    return [config for config in tried if _fits(config, rows)]


def attention_sweep(setting: Setting, rows: int, group: int) -> list[Config]:
    """For the decode attention timed alone."""
    splits = choose_attention(rows // group, setting.shape.heads, group, setting.dtype, setting.device).splits
    blocks = ((16, 2), (32, 4), (64, 4), (64, 8)) if group == 1 else ((32, 4), (64, 4), (64, 8), (128, 8))
    cuts = sorted({max(1, splits // 2), splits, min(32, 2 * splits)})
    return [AttentionConfig(block, warps, cut) for (block, warps), cut in itertools.product(blocks, cuts)]


def prefill_attention_sweep(setting: Setting) -> list[Config]:
    """For the attention of whole prompts timed alone."""
    if setting.device.type == "cpu":
        return [PrefillAttentionConfig(32, 16, 4, 1)]
    blocks = ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (128, 128, 8, 3))
    return [PrefillAttentionConfig(*block) for block in blocks]


def output_sweep(setting: Setting, rows: int) -> list[Config]:
    """For the output layer timed alone."""
    if setting.device.type == "cpu":
        return [VectorConfig(16, 32, 1)]
    configs: list[Config] = []
    if rows == 1:
        configs += [VectorConfig(n, 1024, 4) for n in (4, 8, 16)]
    blocks = ((64, 128, 4), (128, 64, 4), (128, 128, 4), (128, 64, 8), (256, 64, 8))
    tried = (MatrixConfig(*block, stages) for block, stages in itertools.product(blocks, (3, 4, 5)))
    return configs + [config for config in tried if _fits(config, rows)]


def product_candidates(rows: int) -> Sequence[VectorConfig | MatrixConfig]:
    """For a projection inside a step: what came out well alone."""
    if rows <= 2:
        vectors = ((2, 1024, 4), (4, 1024, 4), (8, 1024, 4), (2, 2048, 8), (4, 2048, 8), (4, 512, 2))
        return [VectorConfig(*block) for block in vectors]
    return _matrix_configs(rows)


def attention_candidates() -> list[AttentionConfig]:
    """For the decode attention inside a step."""
    return [
        AttentionConfig(block_t, warps, splits)
        for block_t, warps, splits in itertools.product((16, 32, 64), (2, 4), (1, 4, 8, 13))
    ]


def output_candidates(rows: int) -> list[VectorConfig | MatrixConfig]:
    """For the output layer inside a step."""
    if rows == 1:
        return [VectorConfig(n, 1024, 4) for n in (4, 8, 16)]
    tried = (
        MatrixConfig(n, k, warps, stages)
        for n, k, warps, stages in itertools.product((64, 128), (64, 128), (4, 8), (3, 4, 5))
    )
    return [config for config in tried if _fits(config, rows)]


def step_candidates(shape: Shape, rows: int) -> dict[str, Sequence[Any]]:
    """What each operation of a step may try."""
    projections = {name: product_candidates(rows) for name in PRODUCTS}
    return {**projections, "attention": attention_candidates(), "output": output_candidates(rows)}
