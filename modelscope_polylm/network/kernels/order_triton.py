"""The order of kernels and of the programs of one kernel; and sums that do not depend on the order of their terms.

Programmatic dependent launch: a kernel starts while the kernel before it ends.

Rule for every kernel: what an earlier kernel of the step wrote is read, and anything is written, only after
`wait_for_previous`. What was complete before the step (weights, lengths, slots, cached keys and values) may be read
earlier, because the first kernel of a step, the embedding's, is torch's and starts when all work before it has ended.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from modelscope_polylm.network.kernels.dispatch import overlaps


@triton.jit
def admit_next(OVERLAP: tl.constexpr):
    # the next kernel may start as soon as every program of this one has come here
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_wait()


@triton.jit
def last_to_arrive(counter, programs):
    # true in the last of `programs` programs; what the others stored is then visible, and the counter is zero again
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel")
    if arrived == programs - 1:
        tl.store(counter, 0)
    return arrived == programs - 1


def launch_options(
    device: torch.device, warps: int, stages: int = 1, registers: int | None = None, fuses: bool = True
) -> dict[str, Any]:
    """Keyword arguments of a kernel launch, OVERLAP among them.

    A thread has at most `registers`. Without `fuses` no product is fused with a sum: which ones the compiler fuses can
    differ from row to row of a block.
    """
    overlap = overlaps(device)
    options: dict[str, Any] = {
        "num_warps": warps, "num_stages": stages, "OVERLAP": overlap, "enable_fp_fusion": fuses
    }  # fmt: skip
    if registers is not None:
        options["maxnreg"] = registers
    if overlap:
        options["launch_pdl"] = True
    return options


@triton.jit
def exact_sum(terms, COUNT: tl.constexpr, FINE: tl.constexpr):
    # terms: [Q, COUNT] between 0 and 1 (a little above is allowed), COUNT a power of two -> [Q]
    # rounded to multiples of COUNT * 2^-23, by a number that leaves no smaller bits, they add up without rounding
    COARSE: tl.constexpr = 1.5 * COUNT
    coarse = (terms + COARSE) - COARSE
    total = tl.sum(coarse, 1)
    if FINE:
        # what the first rounding left, in multiples of COUNT^2 * 2^-47
        REST: tl.constexpr = 1.5 * COUNT * COUNT / 16777216
        total += tl.sum(((terms - coarse) + REST) - REST, 1)
    return total
