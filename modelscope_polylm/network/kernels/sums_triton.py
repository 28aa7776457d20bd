"""Sums whose result does not depend on the order of their terms, and so not on how threads share them."""

from __future__ import annotations

import triton
import triton.language as tl


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
