from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels import configs
from modelscope_polylm.network.kernels.configs import AttentionConfig, MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import MAX_ROWS

CPU = torch.device("cpu")
# bytes of shared memory that one program may have
CARDS = {"H100": 227 << 10, "A100": 163 << 10, "GeForce": 99 << 10, "T4": 64 << 10}
WIDTHS = {"13b": 5120, "1.7b": 2048, "tiny": 64}


def projections(width):
    return {
        "c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
    }


@pytest.fixture(params=CARDS.values(), ids=CARDS)
def room(request, monkeypatch):
    monkeypatch.setattr(configs, "shared_memory", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_row_count_has_a_projection_kernel_that_fits(width, room):
    for rows in range(1, MAX_ROWS + 1):
        for name, (outputs, inputs) in projections(width).items():
            config = configs.choose_linear(rows, outputs, inputs, torch.bfloat16, CPU)
            assert isinstance(config, VectorConfig if rows <= 2 else MatrixConfig)
            if isinstance(config, MatrixConfig):
                assert config.shared_bytes(rows) <= room, f"{name}, {rows} rows"
                assert config.stages >= 2 and config.block_k >= 32


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("c_attn", 1, VectorConfig(4, 1024, 4)),
        ("c_fc", 2, VectorConfig(4, 1024, 4)),
        ("mlp.c_proj", 1, VectorConfig(4, 1024, 4)),
        ("c_attn", 64, MatrixConfig(64, 128, 4, 3)),
        ("attn.c_proj", 64, MatrixConfig(64, 128, 4, 6)),
        ("c_fc", 8, MatrixConfig(64, 128, 4, 3)),
        ("c_fc", 9, MatrixConfig(64, 128, 4, 6)),
        ("mlp.c_proj", 32, MatrixConfig(64, 128, 4, 6, even=True)),
        ("mlp.c_proj", 33, MatrixConfig(64, 128, 4, 6)),
    ],
)
def test_projections_are_told_apart_by_their_proportions(name, rows, expected):
    assert configs.choose_linear(rows, *projections(5120)[name], torch.float16, CPU) == expected


@pytest.mark.parametrize(
    ("card", "rows", "expected"),
    [
        ("H100", 4, MatrixConfig(64, 128, 4, 6)),
        ("GeForce", 4, MatrixConfig(64, 128, 4, 4)),
        ("GeForce", 64, MatrixConfig(64, 128, 4, 3)),
        ("T4", 64, MatrixConfig(64, 128, 4, 2)),
    ],
)
def test_less_shared_memory_takes_fewer_stages(card, rows, expected, monkeypatch):
    monkeypatch.setattr(configs, "shared_memory", lambda device: CARDS[card])
    assert configs.choose_linear(rows, *projections(5120)["attn.c_proj"], torch.bfloat16, CPU) == expected


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
def test_output_layer_fits_and_keeps_fewer_tokens_than_it_makes(rows, room):
    for top in (1, 16):
        config = configs.choose_output(rows, top, torch.bfloat16, CPU)
        assert config is not None and config.block_n >= top
        assert isinstance(config, VectorConfig) or config.shared_bytes(rows) <= room


def test_fp32_takes_multiply_adds_for_few_rows_and_the_library_for_more():
    for rows, expected in ((8, VectorConfig(4, 512, 4)), (9, None)):
        assert configs.choose_linear(rows, 5120, 5120, torch.float32, CPU) == expected
    assert configs.choose_output(4, 8, torch.float32, CPU) == VectorConfig(16, 256, 4)
    assert configs.choose_output(5, 8, torch.float32, CPU) is None
