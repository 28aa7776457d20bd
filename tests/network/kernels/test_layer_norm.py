from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels.dispatch import kernel_settings
from modelscope_polylm.network.kernels.layer_norm import layer_norm, layer_norm_reference
from tests.network.kernels.random_tensors import random, relative_error


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (3, 100)])
def test_kernel_agrees_with_the_reference(rows, width, device, dtype, tolerance):
    x = random(rows, width, device=device, scale=3.0) + 5.0
    weight, bias = random(width, dtype=dtype, device=device), random(width, dtype=dtype, device=device)
    nothing = torch.zeros(width, device=device)
    result = layer_norm(x, weight, bias, 1e-5, nothing)
    assert result.dtype == dtype
    assert relative_error(result, layer_norm_reference(x, weight.float(), bias.float(), 1e-5, nothing)) < tolerance


def test_deferred_bias_before_the_norm(device, dtype, tolerance):
    x, deferred_bias = random(3, 100, device=device), random(100, device=device, scale=4.0)
    weight, bias = random(100, dtype=dtype, device=device), random(100, dtype=dtype, device=device)
    nothing = torch.zeros_like(deferred_bias)
    before, expected = x.clone(), layer_norm_reference(x + deferred_bias, weight.float(), bias.float(), 1e-5, nothing)
    assert relative_error(layer_norm(x, weight, bias, 1e-5, deferred_bias), expected) < tolerance
    assert torch.equal(x, before)


def test_epsilon_decides_where_the_variance_vanishes(device):
    x, one = torch.full((1, 32), 7.0, device=device), torch.ones(32, device=device)
    assert torch.equal(layer_norm(x, one, 2 * one, 1e-5, 0 * one), 2 * one[None])


def test_reference_takes_statistics_in_fp32():
    x = torch.randn(2, 64) + 300.0
    exact = torch.nn.functional.layer_norm(x.double(), (64,))
    with kernel_settings("torch"):
        one = torch.ones(64, dtype=torch.bfloat16)
        result = layer_norm(x, one, 0 * one, 1e-5, torch.zeros(64))
    assert result.dtype == torch.bfloat16
    assert relative_error(result, exact) < 4e-3
