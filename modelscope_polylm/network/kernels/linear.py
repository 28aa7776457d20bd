"""Linear layers: for a few rows, bias, GELU or the residual sum are part of the product's kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig, choose_linear
from modelscope_polylm.network.kernels.dispatch import MAX_ROWS, uses_triton

Config = VectorConfig | MatrixConfig


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """Plain torch twin of `linear`; on a CPU it rounds once more, before the GELU."""
    # x: [R, K], weight: [N, K], bias: [N] -> [R, N]
    if gelu and x.is_cuda:
        # cuBLAS applies the tanh GELU before it rounds
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def add_product_reference_(residual: Tensor, x: Tensor, weight: Tensor) -> None:
    """Plain torch twin of `add_product_`; on a CPU it rounds the product to the weights' dtype."""
    # residual: [R, N] fp32, x: [R, K], weight: [N, K]
    if x.is_cuda and x.dtype.itemsize == 2:
        torch.addmm(residual, x, weight.t(), out_dtype=torch.float32, out=residual)
    else:
        residual += F.linear(x, weight)


def _choose(x: Tensor, weight: Tensor, other: Tensor, config: Config | None) -> Config | None:
    # x: [R, K], weight: [N, K]; None: the torch twin is as good or the shape is not for the kernels
    rows, inputs = x.shape
    supported = uses_triton(x, weight, other) and 1 <= rows <= MAX_ROWS and inputs % 16 == 0
    if not supported:
        return None
    return config or choose_linear(rows, weight.shape[0], inputs, weight.dtype, weight.device)


def _run(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, config: Config) -> None:
    # x: [R, K], weight: [N, K], bias: [N], None adds to out: [R, N]
    from modelscope_polylm.network.kernels.linear_triton import launch_matrix, launch_vector

    with torch.cuda.device_of(x):
        if isinstance(config, VectorConfig):
            launch_vector(x, weight, bias, out, gelu, config)
        else:
            launch_matrix(x, weight, bias, out, gelu, config)


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False, config: Config | None = None) -> Tensor:
    """x @ weight.T + bias, with the tanh GELU of GPT-2 on request.

    x is [R, K], weight [N, K], bias [N], all of one dtype; the result [R, N] has that dtype. Kernels (1 to 64 rows on
    CUDA) add in fp32 and round once. `config` overrides the choice of kernel.
    """
    # x: [R, K], weight: [N, K], bias: [N] -> [R, N]
    chosen = _choose(x, weight, bias, config)
    if chosen is None:
        return linear_reference(x, weight, bias, gelu)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=weight.dtype, device=x.device)
    _run(out, x, weight, bias, gelu, chosen)
    return out


def add_product_(residual: Tensor, x: Tensor, weight: Tensor, config: Config | None = None) -> None:
    """residual += x @ weight.T, in place; on CUDA the product is not rounded.

    residual is [R, N] fp32, x [R, K], weight [N, K].
    """
    # residual: [R, N] fp32, x: [R, K], weight: [N, K]
    chosen = _choose(x, weight, residual, config)
    if chosen is None:
        add_product_reference_(residual, x, weight)
    else:
        _run(residual, x, weight, None, False, chosen)
