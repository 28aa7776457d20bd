"""Places among candidates, and the finished beams that candidates are merged into.

Nothing is sorted: a place is the number of those before it, and what is chosen is stored at its place.
"""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = tl.constexpr(5)  # of a continuation, as in beam.py: score, log-probability, token, parent row, position
COLUMN_BLOCK = tl.constexpr(8)


@triton.jit
def places(keys):
    # keys: [N] -> [N] int32, how many are larger
    return tl.sum((keys[:, None] > keys[None, :]).to(tl.int32), 0)


@triton.jit
def store_choice(room, logprob, token, parent, stored):
    # room: [N] pointers to three fp64 each; logprob, token, parent: [N]
    tl.store(room, logprob.to(tl.float64), mask=stored)
    tl.store(room + 1, token.to(tl.float64), mask=stored)
    tl.store(room + 2, parent.to(tl.float64), mask=stored)


@triton.jit
def load_finished(finished, BEAMS: tl.constexpr, ROWS: tl.constexpr):
    # finished: BEAMS continuations -> [ROWS, COLUMN_BLOCK], and once more the scores [ROWS], of none -inf
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMN_BLOCK)[None, :]
    exists = (row < BEAMS)[:, None] & (column < COLUMNS)
    columns = tl.load(finished + row[:, None] * COLUMNS + column, mask=exists)
    return columns, tl.load(finished + row * COLUMNS, mask=row < BEAMS, other=float("-inf"))


@triton.jit
def merge(
    finished, columns, finished_score, score, enters, order, logprob, token, parent, position,
    BEAMS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # columns, finished_score: what `finished` holds, best first; the rest: [WIDTH] candidates, some of which enter, in
    # this order -> the score of the last finished beam
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMN_BLOCK)[None, :]
    # of equals the one that was finished before stays ahead
    ahead = finished_score[None, :] >= score[:, None]
    new_row = row + tl.sum((enters[:, None] & ~ahead).to(tl.int32), 0)
    place = places(tl.where(enters, -order, -WIDTH)) + tl.sum(ahead.to(tl.int32), 1)
    enters &= place < BEAMS
    worst_entered = tl.min(tl.where(enters, score, float("inf")))
    worst = tl.minimum(worst_entered, tl.min(tl.where(new_row < BEAMS, finished_score, float("inf"))))
    # every thread has read before one writes
    tl.debug_barrier()
    room = finished + place * COLUMNS
    tl.store(room, score, mask=enters)
    store_choice(room + 1, logprob, token, parent, enters)
    tl.store(room + 4, tl.zeros((WIDTH,), tl.float64) + position, mask=enters)
    stays = (new_row < BEAMS)[:, None] & (column < COLUMNS)
    tl.store(finished + new_row[:, None] * COLUMNS + column, columns, mask=stays)
    return worst
