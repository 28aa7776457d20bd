"""GPT-2's projections as they are trained: frozen, in fewer bits if wished, with a low-rank adapter on top."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from modelscope_polylm.network.kernels.quantized import plain
from modelscope_polylm.network.quantization import QuantizedMatrix


class QuantizedConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's projection with a frozen matrix in fewer bits, whose plain numbers exist only while a product runs.

    peft adapts it as any Conv1D.

    Args:
        matrix: [outputs, inputs].
        bias: [outputs].
    """

    def __init__(self, matrix: QuantizedMatrix, bias: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.nf, self.nx = matrix.shape
        self.matrix, self.bias = matrix, torch.nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[inputs, outputs] in the dtype of products, made anew."""
        return plain(self.matrix).t()

    def forward(self, x: Tensor) -> Tensor:
        """Compute x [..., inputs] -> [..., outputs] in the dtype of products."""
        # x: [..., nx] -> [..., nf]
        product: Tensor = _FrozenProduct.apply(x.to(self.matrix.dtype), self.matrix)  # type: ignore[no-untyped-call]
        return product + self.bias.to(product.dtype)


class _FrozenProduct(torch.autograd.Function):
    """A product with a quantised matrix, unpacked for it and once more for the gradient, so that none is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: QuantizedMatrix) -> Tensor:
        # x: [..., K], matrix: [N, K] -> [..., N]
        ctx.matrix = matrix
        return F.linear(x, plain(matrix))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        # outer: [..., N] -> [..., K]
        return outer[0].to(ctx.matrix.dtype) @ plain(ctx.matrix), None


def adapt_in_one_product(model: torch.nn.Module) -> None:
    """Let the adapted projections of a peft model compute by `_AdaptedProduct`.

    peft's own way adds the adapter in four passes over the outputs. It stays where the adapter's inputs are dropped.
    """
    from peft.tuners.lora import Linear

    layers: list[Any] = [each for each in model.modules() if isinstance(each, Linear)]
    for layer in layers:
        if all(isinstance(each, torch.nn.Identity) for each in layer.lora_dropout.values()):
            layer.forward = partial(_adapted, layer)


def _adapted(layer: Any, x: Tensor) -> Tensor:
    # x: [..., K] -> [..., N]
    (name,) = layer.active_adapters
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.base_layer.bias.dtype
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    product: Tensor = _AdaptedProduct.apply(x, layer.base_layer, down, up, layer.scaling[name], dtype)  # type: ignore[no-untyped-call]
    return product


class _AdaptedProduct(torch.autograd.Function):
    """A frozen projection and its adapter, x W + b + scale x A' B', whose inputs alone are kept for the gradients.

    LoRA (arXiv 2106.09685), section 4.1. The adapter is added by the product's own accumulation, and the frozen matrix
    is read anew in the backward pass, so that one in fewer bits need not be kept unpacked.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Conv1D, down: Tensor, up: Tensor, scale: float, dtype: torch.dtype
    ) -> Tensor:
        # x: [..., K], base: K -> N, down: [rank, K], up: [N, rank] -> [..., N] in dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        low = flat @ down.to(dtype).t()
        product = torch.addmm(base.bias.to(dtype), flat, base.weight.to(dtype))
        product.addmm_(low, up.to(dtype).t(), alpha=scale)
        ctx.save_for_backward(flat, low, down, up)
        ctx.base, ctx.scale = base, scale
        return product.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        # outer: [..., N] -> [..., K], [rank, K], [N, rank]
        flat, low, down, up = ctx.saved_tensors
        gradient = outer[0].reshape(-1, outer[0].shape[-1]).to(flat.dtype)
        low_gradient = (gradient @ up.to(flat.dtype)).mul_(ctx.scale)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = gradient @ ctx.base.weight.to(flat.dtype).t()
            x_gradient.addmm_(low_gradient, down.to(flat.dtype))
            x_gradient = x_gradient.view(*outer[0].shape[:-1], -1)
        down_gradient = (low_gradient.t() @ flat).to(down.dtype)
        up_gradient = (gradient.t() @ low).to(up.dtype).mul_(ctx.scale)
        return x_gradient, None, down_gradient, up_gradient, None, None
