"""Linear layers: bias, GELU or the residual sum are part of the product's kernel where rows are few.

With `KernelSettings.deterministic`, on CUDA with compute capability 9.0, a row's result does not depend by a single bit
on the number of rows: our kernels never cut a sum, and the library's products take over where they give the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import (
    MatrixConfig,
    VectorConfig,
    choose_linear,
    prefers_library,
)
from modelscope_polylm.network.kernels.dispatch import uses_triton

Config = VectorConfig | MatrixConfig


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """Compute `linear` in plain torch."""
    # x: [R, K], weight: [N, K], bias: [N] -> [R, N]
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def add_product_reference_(residual: Tensor, x: Tensor, weight: Tensor) -> None:
    """Compute `add_product_` in plain torch; on a CPU it rounds the product to the weights' dtype."""
    # residual: [R, N] fp32, x: [R, K], weight: [N, K]
    if x.is_cuda and x.dtype.itemsize == 2:
        torch.addmm(residual, x, weight.t(), out_dtype=torch.float32, out=residual)
    else:
        residual += F.linear(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False, config: Config | None = None) -> Tensor:
    """Compute x @ weight.T + bias, rounded to the weights' dtype, and on request the tanh GELU of GPT-2 of that.

    x is [R, K], weight [N, K], bias [N], all of one dtype; the result [R, N] has that dtype. Sums are taken in fp32.
    `config` overrides the choice of kernel.
    """
    # x: [R, K], weight: [N, K], bias: [N] -> [R, N]
    if not _fits_kernels(x, weight, bias):
        return linear_reference(x, weight, bias, gelu)
    from modelscope_polylm.network.kernels.linear_triton import launch_gelu, launch_linear

    with torch.cuda.device_of(x):
        if config is None and _prefers_library(x, weight):
            y = F.linear(x, weight, bias)
            if gelu:
                launch_gelu(y)
            return y
        y = torch.empty(x.shape[0], weight.shape[0], dtype=weight.dtype, device=x.device)
        launch_linear(x, weight, bias, y, gelu, config or _choose(x, weight))
        return y


def add_product_(residual: Tensor, x: Tensor, weight: Tensor, config: Config | None = None) -> None:
    """residual += x @ weight.T, in place; on CUDA the product is not rounded.

    residual is [R, N] fp32, x [R, K], weight [N, K].
    """
    # residual: [R, N] fp32, x: [R, K], weight: [N, K]
    if not _fits_kernels(x, weight, residual) or (config is None and _prefers_library(x, weight)):
        add_product_reference_(residual, x, weight)
        return
    from modelscope_polylm.network.kernels.linear_triton import launch_linear

    with torch.cuda.device_of(x):
        launch_linear(x, weight, None, residual, False, config or _choose(x, weight))


def _fits_kernels(x: Tensor, weight: Tensor, other: Tensor) -> bool:
    # x: [R, K]; tensor descriptors need rows of whole 16 bytes
    return len(x) > 0 and x.shape[1] % 16 == 0 and uses_triton(x, weight, other)


def _prefers_library(x: Tensor, weight: Tensor) -> bool:
    # x: [R, K], weight: [N, K]
    return x.is_cuda and prefers_library(len(x), weight.shape[0], weight.shape[1], weight.dtype)


def _choose(x: Tensor, weight: Tensor) -> Config:
    return choose_linear(len(x), weight.shape[0], weight.shape[1], weight.dtype, weight.device)
