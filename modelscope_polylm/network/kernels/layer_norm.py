"""Layer normalisation of the fp32 residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.dispatch import uses_triton


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, add: Tensor | None = None, add_bias: Tensor | None = None
) -> Tensor:
    """Plain torch twin of `layer_norm`."""
    # x, add: [R, D], add_bias: [D] -> [R, D]
    if add is not None:
        x += add
    if add_bias is not None:
        x += add_bias
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), epsilon).to(weight.dtype)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, add: Tensor | None = None, add_bias: Tensor | None = None
) -> Tensor:
    """Normalises each row of x [R, D] and returns [R, D] in the dtype of `weight` [D] and `bias` [D].

    Mean and variance (biased, as torch.nn.LayerNorm) are taken in fp32. Before that `add` [R, D] and `add_bias` [D]
    are added to x in place.
    """
    # x: [R, D] fp32, add: [R, D], add_bias: [D] -> [R, D]
    if not uses_triton(x, weight, bias, *(added for added in (add, add_bias) if added is not None)):
        return layer_norm_reference(x, weight, bias, epsilon, add, add_bias)
    from modelscope_polylm.network.kernels.layer_norm_triton import launch_layer_norm

    out = torch.empty_like(x, dtype=weight.dtype)
    with torch.cuda.device_of(x):
        launch_layer_norm(x, weight, bias, out, epsilon, add, add_bias)
    return out
