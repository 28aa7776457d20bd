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
    QuantizedConfig,
    VectorConfig,
    choose_linear,
    choose_quantized,
    library_rows,
    prefers_library,
)
from modelscope_polylm.network.kernels.dispatch import uses_triton
from modelscope_polylm.network.kernels.quantized import operand
from modelscope_polylm.network.quantization import QuantizedMatrix, Weight

Config = VectorConfig | MatrixConfig | QuantizedConfig


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


def linear(x: Tensor, weight: Weight, bias: Tensor, gelu: bool = False, config: Config | None = None) -> Tensor:
    """Compute x @ weight.T + bias, rounded to the weights' dtype, and on request the tanh GELU of GPT-2 of that.

    x is [R, K], weight [N, K], bias [N], all of one dtype, in which a quantised weight is multiplied; the result [R, N]
    has that dtype. Sums are taken in fp32. `config` overrides the choice of kernel.
    """
    # x: [R, K], weight: [N, K], bias: [N] -> [R, N]
    weight = operand(x, weight, bias)
    if isinstance(weight, Tensor):
        if not _fits_kernels(x, weight, bias):
            return linear_reference(x, weight, bias, gelu)
        if config is None and _prefers_library(x, weight):
            return _library_linear(x, weight, bias, gelu)
    from modelscope_polylm.network.kernels.linear_triton import launch_linear

    with torch.cuda.device_of(x):
        y = torch.empty(len(x), len(weight), dtype=weight.dtype, device=x.device)
        launch_linear(x, weight, bias, y, gelu, config or _choose(x, weight))
        return y


def add_product_(residual: Tensor, x: Tensor, weight: Weight, config: Config | None = None) -> None:
    """residual += x @ weight.T, in place; on CUDA the product is not rounded.

    residual is [R, N] fp32, x [R, K], weight [N, K].
    """
    # residual: [R, N] fp32, x: [R, K], weight: [N, K]
    weight = operand(x, weight, residual)
    if isinstance(weight, Tensor) and not _fits_kernels(x, weight, residual):
        add_product_reference_(residual, x, weight)
        return
    from modelscope_polylm.network.kernels.linear_triton import launch_linear

    with torch.cuda.device_of(x):
        if isinstance(weight, Tensor) and config is None and _prefers_library(x, weight):
            _add_library_product_(residual, x, weight)
            return
        launch_linear(x, weight, None, residual, False, config or _choose(x, weight))


def _library_linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    # x: [R, K], weight: [N, K], bias: [N] -> [R, N]
    from modelscope_polylm.network.kernels.linear_triton import launch_gelu

    with torch.cuda.device_of(x):
        y = F.linear(x, weight, bias)
        if gelu:
            launch_gelu(y)
        return y


def library_product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T of the library on CUDA, [R, N] fp32, not rounded; with the bits of the kernels if it must have them.

    x is [R, K], weight [N, K].
    """
    # x: [R, K], weight: [N, K] -> [R, N] fp32
    if weight.dtype == torch.float32:
        return F.linear(x, weight)
    rows = len(x)
    padded = F.pad(x, (0, 0, 0, library_rows(rows, *weight.shape) - rows))
    return torch.mm(padded, weight.t(), out_dtype=torch.float32)[:rows]


def _add_library_product_(residual: Tensor, x: Tensor, weight: Tensor) -> None:
    # residual: [R, N] fp32, x: [R, K], weight: [N, K]
    if library_rows(len(x), *weight.shape) > len(x):
        residual += library_product(x, weight)
    else:
        add_product_reference_(residual, x, weight)


def _fits_kernels(x: Tensor, weight: Tensor, other: Tensor) -> bool:
    # x: [R, K]; tensor descriptors need rows of whole 16 bytes
    return len(x) > 0 and x.shape[1] % 16 == 0 and uses_triton(x, weight, other)


def _prefers_library(x: Tensor, weight: Tensor) -> bool:
    # x: [R, K], weight: [N, K]
    return x.is_cuda and prefers_library(len(x), weight.dtype)


def _choose(x: Tensor, weight: Weight) -> Config:
    if isinstance(weight, QuantizedMatrix):
        return choose_quantized(len(x), weight, x.device)
    return choose_linear(len(x), weight.shape[0], weight.shape[1], weight.dtype, weight.device)
