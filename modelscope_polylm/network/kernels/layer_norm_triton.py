"""Kernel of `layer_norm`: one program for each row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous


@triton.jit
def layer_norm_kernel(
    x, added, added_bias, weight, bias, out, epsilon,
    D: tl.constexpr, WIDTH: tl.constexpr, ADD: tl.constexpr, ADD_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # x: [R, D] fp32, added, out: [R, D], added_bias, weight, bias: [D]
    admit_next(OVERLAP)
    d = tl.arange(0, WIDTH)
    scale = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
    wait_for_previous(OVERLAP)
    place = tl.program_id(0).to(tl.int64) * D + d
    value = tl.load(x + place, mask=d < D, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(added + place, mask=d < D, other=0.0).to(tl.float32)
    if ADD_BIAS:
        value += tl.load(added_bias + d, mask=d < D, other=0.0).to(tl.float32)
    if ADD or ADD_BIAS:
        tl.store(x + place, value, mask=d < D)
    mean = tl.sum(value) / D
    centred = tl.where(d < D, value - mean, 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred) / D + epsilon)
    tl.store(out + place, centred * deviation * scale + shift, mask=d < D)


def launch_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, epsilon: float, add: Tensor | None, add_bias: Tensor | None,
    warps: int = 8,
) -> None:  # fmt: skip
    # x: [R, D] fp32, add, out: [R, D], add_bias, weight, bias: [D]
    rows, width = x.shape
    layer_norm_kernel[(rows,)](
        x, x if add is None else add, x if add_bias is None else add_bias, weight, bias, out, epsilon,
        D=width, WIDTH=triton.next_power_of_2(width), ADD=add is not None, ADD_BIAS=add_bias is not None,
        **launch_options(x.device, warps),
    )  # fmt: skip
