"""Layer normalisation of the fp32 residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.dispatch import uses_triton


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, shift: Tensor) -> Tensor:
    """Plain torch twin of `layer_norm`."""
    # x: [R, D], weight, bias, shift: [D] -> [R, D]
    return F.layer_norm(x.float() + shift, x.shape[-1:], weight.float(), bias.float(), epsilon).to(weight.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, shift: Tensor) -> Tensor:
    """Normalises each row of x [R, D] + shift [D] and returns [R, D] in the dtype of `weight` [D] and `bias` [D].

    Mean and variance (biased, as torch.nn.LayerNorm) are taken in fp32; x and `shift` are fp32.
    """
    # x: [R, D] fp32, shift: [D] -> [R, D]
    if not uses_triton(x, weight, bias, shift):
        return layer_norm_reference(x, weight, bias, epsilon, shift)
    from modelscope_polylm.network.kernels.layer_norm_triton import launch_layer_norm

    out = torch.empty_like(x, dtype=weight.dtype)
    with torch.cuda.device_of(x):
        launch_layer_norm(x, weight, bias, out, epsilon, shift)
    return out
