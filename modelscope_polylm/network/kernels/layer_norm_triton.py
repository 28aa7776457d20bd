"""Kernel of `layer_norm`: one program for each row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous

WARPS = 4
"""The same for every number of rows: a row is summed in an order that depends on it."""


@triton.jit
def layer_norm_kernel(
    x, weight, bias, deferred_bias, out, epsilon, D: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, D] fp32, out: [R, D], weight, bias, deferred_bias: [D]
    admit_next(OVERLAP)
    d = tl.arange(0, WIDTH)
    scale = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    offset = tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
    deferred = tl.load(deferred_bias + d, mask=d < D, other=0.0)
    wait_for_previous(OVERLAP)
    place = tl.program_id(0).to(tl.int64) * D + d
    value = tl.load(x + place, mask=d < D, other=0.0).to(tl.float32) + deferred
    mean = tl.sum(value) / D
    centred = tl.where(d < D, value - mean, 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred) / D + epsilon)
    tl.store(out + place, centred * deviation * scale + offset, mask=d < D)


def launch_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, epsilon: float, deferred_bias: Tensor
) -> None:
    # x: [R, D] fp32, out: [R, D], weight, bias, deferred_bias: [D]
    rows, width = x.shape
    layer_norm_kernel[(rows,)](
        x, weight, bias, deferred_bias, out, epsilon,
        D=width, WIDTH=triton.next_power_of_2(width), **launch_options(x.device, WARPS),
    )  # fmt: skip
