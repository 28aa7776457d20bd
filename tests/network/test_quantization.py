from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.quantization import (
    FORMATS,
    dequantize,
    dequantize_rows,
    pack,
    quantize,
    unpack,
)
from tests.network.weight_errors import weight_errors


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [1, 128, 700])
def test_packed_integers_come_back(bits, inputs):
    half = 1 << (bits - 1)
    values = torch.randint(-half, half, (5, inputs), dtype=torch.int8)
    assert torch.equal(unpack(pack(values, bits), bits, inputs), values)


@pytest.mark.parametrize("name", FORMATS)
def test_a_block_meets_contiguous_inputs(name):
    kind = FORMATS[name]
    values = torch.arange(kind.streams * 64).remainder(7)[None].to(torch.int8)
    words = pack(values, kind.bits)
    for stream in range(kind.streams):
        found = words >> (kind.bits * stream) & ((1 << kind.bits) - 1)
        assert found[0].tolist() == values[0, 64 * stream : 64 * (stream + 1)].tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_known_before(name):
    matrix = quantize(torch.randn(12, 700), name)
    assert matrix.nbytes == FORMATS[name].bytes_of(12, 700)
    assert matrix.shape == (12, 700)
    assert matrix.dtype == torch.float32


@pytest.mark.parametrize("name", FORMATS)
def test_pieces_do_not_matter(name, monkeypatch):
    weight = torch.randn(12, 256)
    whole = quantize(weight, name)
    numbers = dequantize(whole)
    monkeypatch.setattr("modelscope_polylm.network.quantization.PIECE_ELEMENTS", 5 * 256)
    pieces = quantize(weight, name)
    assert torch.equal(pieces.words, whole.words)
    assert torch.equal(pieces.scales, whole.scales)
    assert torch.equal(dequantize(pieces), numbers)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(dequantize_rows(whole, rows), numbers[rows])


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_outliers_and_tiny_weights_stay_finite(name):
    weight = torch.randn(4, 256) * 0.02
    weight[1] = 0
    weight[2, 7] = 1e4
    weight[3] = 1e-40
    back = dequantize(quantize(weight, name))
    assert back.isfinite().all()
    assert (back[1] == 0).all()
    assert back[2, 7] == pytest.approx(1e4, rel=0.1)
    assert back[3].abs().max() < 2e-40


def test_errors_of_weights():
    errors = weight_errors()
    assert 0.005 < errors["int8"]["normal"] < 0.0075 and errors["int8"]["heavy tails"] < 0.016
    assert errors["fp8"]["normal"] < 0.03 and errors["fp8"]["heavy tails"] < 0.03
    # the best of several scales; the largest weight of a group by its integer alone would give 11.7 %
    assert errors["int4"]["normal"] < 0.1 and errors["int4"]["heavy tails"] < 0.2


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("name", FORMATS)
def test_errors_do_not_depend_on_the_size_of_the_weights(name, scale):
    torch.manual_seed(0)
    weight = torch.randn(8, 512)
    errors = [
        torch.linalg.vector_norm((dequantize(quantize(weight * by, name)) / by - weight).double()).item()
        for by in (1, scale)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
