from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels import configs
from modelscope_polylm.network.kernels.configs import LM_HEAD_TILE, MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import settings
from modelscope_polylm.network.quantization import FORMATS, QuantizedMatrix

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
@pytest.mark.parametrize("rows", [1, 2, 8, 16, 17, 33, 64])
def test_every_row_count_has_a_projection_kernel_that_fits(rows, width, room):
    for name, (outputs, inputs) in projections(width).items():
        config = configs.choose_linear(rows, outputs, inputs, torch.bfloat16, CPU)
        assert isinstance(config, VectorConfig if rows <= 2 else MatrixConfig)
        if isinstance(config, VectorConfig):
            continue
        assert config.shared_bytes <= room, f"{name}, {rows} rows"
        assert config.stages >= 2 and config.block_k >= 32
        assert config.block_m >= rows


@pytest.mark.parametrize(
    ("card", "rows", "expected"),
    [
        ("H100", 4, MatrixConfig(16, 64, 256, 4, 4)),
        ("GeForce", 4, MatrixConfig(16, 64, 256, 4, 2)),
        ("GeForce", 64, MatrixConfig(64, 64, 128, 4, 3)),
        ("T4", 64, MatrixConfig(64, 64, 128, 4, 2)),
    ],
)
def test_less_shared_memory_takes_fewer_stages(card, rows, expected, monkeypatch):
    monkeypatch.setattr(configs, "shared_memory", lambda device: CARDS[card])
    assert configs.choose_linear(rows, *projections(5120)["attn.c_proj"], torch.bfloat16, CPU) == expected


def quantized(outputs, inputs, name):
    kind = FORMATS[name]
    words = torch.empty(outputs, kind.words(inputs), dtype=torch.int32, device="meta")
    return QuantizedMatrix(words, words, name, inputs, torch.bfloat16)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_row_count_has_a_quantised_kernel_that_fits(width, name, room):
    streams = FORMATS[name].streams
    for outputs, inputs in projections(width).values():
        matrix = quantized(outputs, inputs, name)
        found = [configs.choose_quantized(rows, matrix, CPU) for rows in (1, 16, 17, 64, 256)]
        # only this decides about the bits
        assert {config.parts for config in found} == {configs.quantized_parts(matrix)}
        assert 1 <= found[0].parts <= matrix.words.shape[1] // 64
        heads = [configs.choose_quantized_lm_head(rows, matrix, CPU) for rows in (1, 33, 256)]
        assert {config.parts for config in heads} == {1} and {config.block_n for config in heads} == {LM_HEAD_TILE}
        for config in [*found, *heads]:
            assert config.shared_bytes(streams, 2) <= room or config.stages == 1


def test_quantised_products_of_few_outputs_are_shared_by_programs():
    parts = {
        name: [configs.quantized_parts(quantized(*size, name)) for size in projections(5120).values()]
        for name in ("int8", "int4")
    }
    assert parts == {"int8": [1, 4, 1, 4], "int4": [1, 5, 1, 5]}


def test_few_rows_of_16_bits_take_multiply_adds_unless_bits_must_be_equal(monkeypatch):
    assert configs.choose_linear(2, 5120, 5120, torch.bfloat16, CPU) == VectorConfig(2, 4, 1024, 4)
    monkeypatch.setattr(settings, "deterministic", True)
    assert isinstance(configs.choose_linear(2, 5120, 5120, torch.bfloat16, CPU), MatrixConfig)


def test_bits_depend_on_nothing_that_the_rows_change():
    """Of multiply-adds block_k and warps decide, of attention block_t."""
    fp32 = [configs.choose_linear(rows, 5120, 5120, torch.float32, CPU) for rows in (1, 7, 64, 8192)]
    assert len({(config.block_k, config.warps) for config in fp32}) == 1
    heads = [configs.choose_lm_head(rows, torch.float32, CPU) for rows in (1, 3, 256)]
    assert len({(config.block_k, config.warps) for config in heads}) == 1
    for dtype in (torch.float32, torch.bfloat16):
        decode = {
            configs.choose_attention(rows, groups, 40, dtype, CPU).block_t for rows in (1, 256) for groups in (1, 64)
        }
        assert decode == {configs.choose_prefill_attention(dtype).block_t}


@pytest.mark.parametrize(
    ("rows", "groups", "splits", "group_splits"),
    [(1, 1, 8, 24), (4, 1, 8, 24), (16, 16, 1, 4), (64, 64, 1, 1), (64, 16, 1, 4)],
)
@pytest.mark.parametrize(("triton", "stages"), [((3, 6), 2), ((3, 9), 1)])
def test_attention_fills_the_card(rows, groups, splits, group_splits, triton, stages, monkeypatch):
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(configs, "_triton_version", lambda: triton)
    config = configs.choose_attention(rows, groups, 40, torch.bfloat16, CPU)
    assert (config.splits, config.group_splits) == (splits, group_splits)
    # many rows share a multiprocessor
    assert (config.warps, config.stages) == ((2, stages) if rows > 8 else (4, 1))


@pytest.mark.parametrize("rows", [1, 16, 32, 33, 64, 256])
def test_lm_head_fits_and_keeps_fewer_tokens_than_it_makes(rows, room):
    config = configs.choose_lm_head(rows, torch.bfloat16, CPU)
    assert isinstance(config, MatrixConfig)
    assert config.block_n > 16 and config.shared_bytes <= room
