from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels import configs
from modelscope_polylm.network.kernels.configs import AttentionConfig, MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import MAX_ROWS

SHARED_MEMORY = 227 * 1024  # bytes that one program may have, compute capability 9.0
WIDTHS = {"13b": 5120, "1.7b": 2048, "tiny": 64}


def projections(width):
    return {
        "c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
    }


def shared_bytes(config, rows):
    """What the pipelined loads of both operands keep in shared memory, in a 16-bit dtype."""
    block_m = max(16, 1 << (rows - 1).bit_length())
    return config.stages * (config.block_n + block_m) * config.block_k * 2


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_row_count_has_a_projection_kernel_that_fits(width):
    for rows in range(1, MAX_ROWS + 1):
        for name, (outputs, inputs) in projections(width).items():
            config = configs.choose_linear(rows, outputs, inputs, torch.bfloat16)
            if name == "mlp.c_proj" and rows > 32:
                assert config is None
                continue
            assert isinstance(config, VectorConfig if rows <= 2 else MatrixConfig)
            if isinstance(config, MatrixConfig):
                assert shared_bytes(config, rows) <= SHARED_MEMORY, f"{name}, {rows} rows"
                assert config.parts == 1 or inputs // config.parts >= configs.MIN_PART


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("c_attn", 1, VectorConfig(4, 1024, 4)),
        ("c_fc", 2, VectorConfig(4, 1024, 4)),
        ("mlp.c_proj", 1, VectorConfig(4, 1024, 4)),
        ("c_attn", 32, MatrixConfig(64, 128, 4, 6, swap=True)),
        ("c_attn", 33, MatrixConfig(128, 64, 4, 6, swap=True)),
        ("attn.c_proj", 64, MatrixConfig(64, 128, 4, 6, swap=True)),
        ("c_fc", 8, MatrixConfig(64, 64, 4, 4, swap=True)),
        ("c_fc", 9, MatrixConfig(64, 64, 4, 6, swap=True)),
        ("mlp.c_proj", 8, MatrixConfig(32, 128, 4, 6, parts=4)),
        ("mlp.c_proj", 9, MatrixConfig(64, 128, 4, 6, parts=4, swap=True)),
    ],
)
def test_projections_are_told_apart_by_their_proportions(name, rows, expected):
    assert configs.choose_linear(rows, *projections(5120)[name], torch.float16) == expected


@pytest.mark.parametrize(("inputs", "parts"), [(8192, 4), (4096, 4), (4095, 2), (2048, 2), (2047, 1)])
def test_parts_of_a_product_keep_enough_inputs(inputs, parts):
    config = configs.choose_linear(4, inputs // 4, inputs, torch.bfloat16)
    assert isinstance(config, MatrixConfig) and config.parts == parts


@pytest.mark.parametrize(
    ("groups", "group", "dtype", "expected"),
    [
        (1, 1, torch.bfloat16, AttentionConfig(32, 2, splits=8)),
        (1, 4, torch.bfloat16, AttentionConfig(64, 4, splits=6)),
        (16, 1, torch.bfloat16, AttentionConfig(16, 2, splits=1)),
        (64, 1, torch.bfloat16, AttentionConfig(16, 2, splits=1)),
        (1, 1, torch.float32, AttentionConfig(32, 4, splits=8)),
        (1, 4, torch.float32, AttentionConfig(16, 4, splits=8)),
    ],
)
def test_attention_fills_the_card(groups, group, dtype, expected, monkeypatch):
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 132)
    assert configs.choose_attention(groups, 40, group, dtype, torch.device("cpu")) == expected


@pytest.mark.parametrize("rows", range(1, MAX_ROWS + 1))
def test_output_layer_fits_and_keeps_fewer_tokens_than_it_makes(rows):
    for top in (1, 16):
        config = configs.choose_output(rows, top, torch.bfloat16)
        assert config is not None and config.block_n >= top
        assert isinstance(config, VectorConfig) or shared_bytes(config, rows) <= SHARED_MEMORY


def test_fp32_takes_multiply_adds_for_few_rows_and_the_library_for_more():
    for rows, expected in ((8, VectorConfig(4, 512, 4)), (9, None)):
        assert configs.choose_linear(rows, 5120, 5120, torch.float32) == expected
    assert configs.choose_output(4, 8, torch.float32) == VectorConfig(16, 256, 4)
    assert configs.choose_output(5, 8, torch.float32) is None
