from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig, choose_linear
from modelscope_polylm.network.kernels.dispatch import kernel_settings, settings
from modelscope_polylm.network.kernels.linear import add_product_, add_product_reference_, linear, linear_reference
from tests.network.kernels.random_tensors import random, relative_error

CONFIGS = [
    VectorConfig(block_m=2, block_n=8, block_k=64, warps=1),
    VectorConfig(block_m=4, block_n=16, block_k=32, warps=4),
    MatrixConfig(block_m=16, block_n=32, block_k=32, warps=4, stages=3),
    MatrixConfig(block_m=32, block_n=64, block_k=64, warps=4, stages=2),
]
# neither 21 and 37 outputs nor 144 inputs divide the blocks, and the last rows need two of them
SHAPES = [(1, 37, 144), (3, 32, 64), (33, 21, 144)]


def arguments(rows, outputs, inputs, dtype, device):
    x, bias = random(rows, inputs, dtype=dtype, device=device), random(outputs, dtype=dtype, device=device)
    return x, random(outputs, inputs, dtype=dtype, device=device, scale=inputs**-0.5), bias


@pytest.mark.parametrize("config", [None, *CONFIGS], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_agree_with_the_reference(shape, config, device, dtype, tolerance):
    x, weight, bias = arguments(*shape, dtype, device)
    exact = x.double(), weight.double(), bias.double()
    assert relative_error(linear(x, weight, bias, False, config), linear_reference(*exact)) < tolerance
    assert relative_error(linear(x, weight, bias, True, config), linear_reference(*exact, True)) < tolerance
    residual = random(shape[0], shape[1], device=device)
    expected = residual.double()
    add_product_reference_(expected, *exact[:2])
    add_product_(residual, x, weight, config)
    # the sum is not rounded to the weights' dtype
    assert relative_error(residual, expected) < 2e-6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_row_does_not_depend_on_the_others(config, device):
    x, weight, bias = arguments(7, 48, 128, torch.float16, device)
    together = linear(x, weight, bias, True, config)
    assert torch.equal(together, linear(x, weight, bias, True, config))
    assert torch.equal(together[4:5], linear(x[4:5].contiguous(), weight, bias, True, config))


@pytest.mark.parametrize("rows", [1, 65])
def test_torch_runs_where_kernels_do_not(rows):
    x, weight, bias = arguments(rows, 24, 40, torch.float32, torch.device("cpu"))
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    with kernel_settings("torch"):
        assert relative_error(linear(x, weight, bias, True), exact) < 1e-6
        residual = torch.zeros(rows, 24)
        add_product_(residual, x, weight)
    assert relative_error(residual, F.linear(x, weight)) < 1e-6


# the projections of 13B and 1.7B, and of a small network
PROPORTIONS = ((3, 1), (1, 1), (4, 1), (1, 4))
SIZES = [(outputs * width, inputs * width) for width in (5120, 2048, 256) for outputs, inputs in PROPORTIONS]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_number_of_rows_gives_the_same_bits_on_a_device(size, dtype, monkeypatch):
    monkeypatch.setattr(settings, "deterministic", True)
    outputs, inputs = size
    device = torch.device("cuda")
    x, weight, bias = arguments(2304 if dtype == torch.bfloat16 else 300, outputs, inputs, dtype, device)
    residual = random(len(x), outputs, device=device)
    # one configuration for all rows, whatever their number
    config = choose_linear(64, outputs, inputs, dtype, device)
    expected = linear(x, weight, bias, True, config)
    expected_sum = residual.clone()
    add_product_(expected_sum, x, weight, config)
    exact = linear_reference(x[:64].double(), weight.double(), bias.double(), True)
    assert relative_error(expected[:64], exact) < (4e-3 if dtype == torch.bfloat16 else 2e-6)
    few = [1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256, 257, 300]
    for rows in [*few, *range(301, 2305, 97)] if dtype == torch.bfloat16 else few:
        part = x[:rows].contiguous()
        assert torch.equal(linear(part, weight, bias, True), expected[:rows]), f"{rows} rows, linear"
        total = residual[:rows].clone()
        add_product_(total, part, weight)
        assert torch.equal(total, expected_sum[:rows]), f"{rows} rows, sum"
