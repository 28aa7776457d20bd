from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import counters, kernel_settings
from modelscope_polylm.network.kernels.linear import (
    add_product_,
    add_product_reference_,
    linear,
    linear_reference,
)
from tests.network.kernels.random_tensors import random, relative_error

CONFIGS = [
    VectorConfig(block_n=8, block_k=64, warps=1),
    VectorConfig(block_n=16, block_k=32, warps=4),
    MatrixConfig(block_n=32, block_k=32, warps=4, stages=3),
    MatrixConfig(block_n=16, block_k=32, warps=4, stages=3, even=True),
    MatrixConfig(block_n=64, block_k=64, warps=4, stages=2, even=True),
]
# neither 21 and 37 outputs nor 144 inputs divide the blocks
SHAPES = [(1, 37, 144), (3, 32, 64), (5, 21, 144)]


def arguments(rows, outputs, inputs, dtype, device):
    x, bias = random(rows, inputs, dtype=dtype, device=device), random(outputs, dtype=dtype, device=device)
    return x, random(outputs, inputs, dtype=dtype, device=device, scale=inputs**-0.5), bias


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_agree_with_the_twins(shape, config, device, dtype, tolerance):
    x, weight, bias = arguments(*shape, dtype, device)
    exact = x.double(), weight.double(), bias.double()
    assert relative_error(linear(x, weight, bias, True, config), linear_reference(*exact, True)) < tolerance
    residual = random(shape[0], shape[1], device=device)
    expected = residual.double()
    add_product_reference_(expected, *exact[:2])
    add_product_(residual, x, weight, config)
    # the sum is not rounded to the weights' dtype
    assert relative_error(residual, expected) < 2e-6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_result_does_not_depend_on_the_run(config, device):
    x, weight, bias = arguments(2, 48, 128, torch.float16, device)
    first = linear(x, weight, bias, config=config)
    assert relative_error(first, linear_reference(x.double(), weight.double(), bias.double())) < 1e-3
    assert torch.equal(first, linear(x, weight, bias, config=config))
    assert not counters(x.device).any()


@pytest.mark.parametrize("rows", [1, 65])
def test_torch_runs_where_kernels_do_not(rows):
    x, weight, bias = arguments(rows, 24, 40, torch.float32, torch.device("cpu"))
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    with kernel_settings("torch"):
        assert relative_error(linear(x, weight, bias, True), exact) < 1e-6
        residual = torch.zeros(rows, 24)
        add_product_(residual, x, weight)
    assert relative_error(residual, F.linear(x, weight)) < 1e-6


def test_a_product_of_many_rows_is_added():
    x, weight, _ = arguments(70, 24, 40, torch.float32, torch.device("cpu"))
    residual = random(70, 24, device=x.device)
    expected = residual.double() + F.linear(x.double(), weight.double())
    add_product_(residual, x, weight)
    assert relative_error(residual, expected) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_of_many_rows_is_added_unrounded_on_a_device(dtype):
    x, weight, _ = arguments(70, 48, 64, dtype, torch.device("cuda"))
    residual = random(70, 48, device=x.device)
    expected = residual.double() + F.linear(x.double(), weight.double())
    add_product_(residual, x, weight)
    assert relative_error(residual, expected) < 2e-6
