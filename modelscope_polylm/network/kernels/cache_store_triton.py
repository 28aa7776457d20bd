"""Kernel of `store_keys_values`: one program for each token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous


@triton.jit
def store_kernel(
    qkv, slots, key_cache, value_cache, cache_stride,
    HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # qkv: [T, 3, HEADS, HEAD], slots: [T], caches: [HEADS, S, HEAD]; WIDTH >= HEADS * HEAD
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    d = tl.arange(0, WIDTH)
    inside = d < HEADS * HEAD
    source = qkv + token.to(tl.int64) * (3 * HEADS * HEAD) + d
    place = (d // HEAD).to(tl.int64) * cache_stride + slot * HEAD + d % HEAD
    tl.store(key_cache + place, tl.load(source + HEADS * HEAD, mask=inside), mask=inside)
    tl.store(value_cache + place, tl.load(source + 2 * HEADS * HEAD, mask=inside), mask=inside)


def launch_store(qkv: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    # qkv: [T, 3D], slots: [T], caches: [H, S, head]
    heads, size, head = key_cache.shape
    store_kernel[(qkv.shape[0],)](
        qkv, slots, key_cache, value_cache, size * head,
        HEADS=heads, HEAD=head, WIDTH=triton.next_power_of_2(heads * head), **launch_options(qkv.device, 8),
    )  # fmt: skip
