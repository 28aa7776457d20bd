"""Layer normalisation of the fp32 residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.dispatch import uses_triton


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, deferred_bias: Tensor) -> Tensor:
    """Compute `layer_norm` in plain torch."""
    # x: [R, D], weight, bias, deferred_bias: [D] -> [R, D]
    return F.layer_norm(x.float() + deferred_bias, x.shape[-1:], weight.float(), bias.float(), epsilon).to(weight.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, deferred_bias: Tensor) -> Tensor:
    """Normalise each row of x [R, D] + deferred_bias [D]; returns [R, D] in the dtype of `weight` [D] and `bias` [D].

    x is the fp32 residual stream, `deferred_bias` what it still lacks: the sum of the biases of all projections before.
    Mean and variance (biased, as torch.nn.LayerNorm) are taken in fp32.
    """
    # x: [R, D] fp32, deferred_bias: [D] -> [R, D]
    if not uses_triton(x, weight, bias, deferred_bias):
        return layer_norm_reference(x, weight, bias, epsilon, deferred_bias)
    from modelscope_polylm.network.kernels.layer_norm_triton import launch_layer_norm

    out = torch.empty_like(x, dtype=weight.dtype)
    with torch.cuda.device_of(x):
        launch_layer_norm(x, weight, bias, out, epsilon, deferred_bias)
    return out
