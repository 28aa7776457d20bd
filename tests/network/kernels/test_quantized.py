from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modelscope_polylm.network.kernels.configs import QuantizedConfig
from modelscope_polylm.network.kernels.dispatch import kernel_settings, settings
from modelscope_polylm.network.kernels.linear import add_product_, linear, linear_reference
from modelscope_polylm.network.kernels.lm_head import lm_head_logits, lm_head_topk, lm_head_topk_reference
from modelscope_polylm.network.kernels.quantized import embedding_rows, plain
from modelscope_polylm.network.quantization import FORMATS, QuantizedMatrix, dequantize, dequantize_rows, pack, quantize
from tests.network.kernels.random_tensors import random, relative_error

SMALL = QuantizedConfig(block_m=16, block_n=32, warps=4, stages=2)
# neither 21 and 37 outputs nor 144 and 1,104 inputs divide the blocks, and the last rows need two of them
PARTS = QuantizedConfig(block_m=16, block_n=32, warps=4, stages=2, parts=3)
SHAPES = [(1, 37, 144, SMALL), (3, 21, 1104, None), (18, 32, 256, SMALL), (18, 37, 1104, PARTS)]


def arguments(rows, outputs, inputs, name, dtype, device):
    x, bias = random(rows, inputs, dtype=dtype, device=device), random(outputs, dtype=dtype, device=device)
    weight = random(outputs, inputs, device=device, scale=inputs**-0.5)
    return x, quantize(weight, name, dtype), bias


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products_agree_with_those_of_plain_numbers(name, shape, device, dtype, tolerance):
    *size, config = shape
    x, weight, bias = arguments(*size, name, dtype, device)
    exact = x.double(), dequantize(weight, torch.float64), bias.double()
    for gelu in (False, True):
        assert relative_error(linear(x, weight, bias, gelu, config), linear_reference(*exact, gelu)) < tolerance
    residual = random(shape[0], shape[1], device=device)
    expected = residual.double() + F.linear(*exact[:2])
    add_product_(residual, x, weight, config)
    # neither the product nor the weights are rounded
    assert relative_error(residual, expected) < 2e-6


@pytest.mark.parametrize("name", FORMATS)
def test_every_integer_is_unpacked(name, device):
    kind = FORMATS[name]
    half = 1 << (kind.bits - 1)
    values = torch.arange(-half, half, dtype=torch.int8).repeat(2, 1)
    if name == "fp8":
        numbers = values.view(torch.float8_e4m3fn)
        values = torch.where(numbers.float().isfinite(), values, 0)
    scales = torch.ones(kind.groups(values.shape[1]), 2, dtype=torch.bfloat16)
    matrix = QuantizedMatrix(
        pack(values, kind.bits).to(device), scales.to(device), name, values.shape[1], torch.float32
    )
    x = torch.eye(values.shape[1], device=device)
    found = torch.cat([linear(part, matrix, torch.zeros(2, device=device), config=SMALL) for part in x.split(64)])
    assert torch.equal(found.t(), dequantize(matrix))


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_the_others(name, device):
    x, weight, bias = arguments(7, 48, 512, name, torch.float16, device)
    together = linear(x, weight, bias, True)
    assert torch.equal(together[4:5], linear(x[4:5].contiguous(), weight, bias, True))


@pytest.mark.parametrize("name", FORMATS)
def test_many_rows_multiply_with_plain_numbers(name, device, dtype, tolerance, monkeypatch):
    x, weight, bias = arguments(65, 24, 144, name, dtype, device)
    exact = linear_reference(x.double(), dequantize(weight, torch.float64), bias.double())
    assert relative_error(linear(x, weight, bias), exact) < tolerance
    monkeypatch.setattr(settings, "deterministic", True)
    few = linear(x[:3].contiguous(), weight, bias, config=SMALL)
    assert torch.equal(linear(x, weight, bias, config=SMALL)[:3], few)


@pytest.mark.parametrize("name", FORMATS)
def test_plain_numbers_and_rows(name, device, dtype):
    weight = quantize(random(37, 700, device=device), name, dtype)
    assert torch.equal(plain(weight), dequantize(weight))
    tokens = torch.tensor([36, 0, 5, 5], device=device)
    assert torch.equal(embedding_rows(weight, tokens), dequantize_rows(weight, tokens))
    assert len(embedding_rows(weight, tokens[:0])) == 0


@pytest.mark.parametrize("rows", [3, 18])
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_lm_head(name, rows, device, dtype):
    hidden = random(rows, 144, dtype=dtype, device=device)
    embedding = quantize(random(300, 144, device=device), name, dtype)
    exact = F.linear(hidden.double(), dequantize(embedding, torch.float64))[:, :290]
    values, ids, log_sum = lm_head_topk(hidden, embedding, 5, 290)
    expected = exact.topk(5)
    assert torch.equal(ids.long(), expected.indices)
    assert relative_error(values, expected.values) < 2e-6
    assert relative_error(log_sum, exact.logsumexp(-1)) < 2e-6
    logits = lm_head_logits(hidden, embedding, 290)
    assert torch.isneginf(logits[:, 290:]).all()
    assert relative_error(logits[:, :290], exact) < 2e-6


def test_torch_runs_where_kernels_do_not():
    with kernel_settings("torch"):
        x, weight, bias = arguments(3, 24, 40, "int8", torch.float32, torch.device("cpu"))
        assert torch.equal(linear(x, weight, bias), linear_reference(x, dequantize(weight), bias))
        residual = torch.zeros(3, 24)
        add_product_(residual, x, weight)
        assert torch.equal(residual, F.linear(x, dequantize(weight)))
        found, expected = lm_head_topk(x, weight, 2, 24), lm_head_topk_reference(x, dequantize(weight), 2, 24)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", FORMATS)
def test_an_outlier_does_not_overflow_half_precision(name, device):
    weight = random(32, 256, device=device, scale=0.02)
    weight[5, 9] = 1e4
    matrix = quantize(weight, name, torch.float16)
    x = random(2, 256, dtype=torch.float16, device=device, scale=0.1)
    exact = F.linear(x.double(), dequantize(matrix, torch.float64))
    assert relative_error(linear(x, matrix, torch.zeros(32, dtype=torch.float16, device=device)), exact) < 1e-3


# the projections of 13B and 1.7B
SIZES = [(width * out, width * inner) for width in (5120, 2048) for out, inner in ((3, 1), (1, 1), (4, 1), (1, 4))]


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_number_of_rows_gives_the_same_bits_on_a_device(size, name, monkeypatch):
    monkeypatch.setattr(settings, "deterministic", True)
    outputs, inputs = size
    x, weight, bias = arguments(256, outputs, inputs, name, torch.bfloat16, torch.device("cuda"))
    expected = linear(x, weight, bias, True)
    exact = linear_reference(x.double(), dequantize(weight, torch.float64), bias.double(), True)
    assert relative_error(expected, exact) < 4e-3
    assert torch.equal(plain(weight), dequantize(weight))
    for rows in (1, 2, 3, 4, 8, 9, 16, 17, 32, 33, 48, 63, 64, 65, 96, 128, 129, 255):
        assert torch.equal(linear(x[:rows].contiguous(), weight, bias, True), expected[:rows]), f"{rows} rows"
