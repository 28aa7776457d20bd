"""Kernel of `BeamSearch.select`: one program for each prompt, in which every candidate stays in its thread.

Nothing is sorted: a rank is the number of larger candidates, and what is chosen is stored at its rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from modelscope_polylm.generation import state
from modelscope_polylm.network.kernels.lm_head_triton import EMPTY, sort_keys
from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous

if TYPE_CHECKING:
    from modelscope_polylm.generation.beam import BeamSearch

IMPOSSIBLE = tl.constexpr(state.IMPOSSIBLE)
COLUMNS = tl.constexpr(5)  # of a continuation, as in state.py: score, log-probability, token, parent beam, position
COLUMN_BLOCK = tl.constexpr(8)
MOVED = 1024
"""Entries of a table that are moved at once."""


@triton.jit
def is_end(token, end_tokens, ENDS: tl.constexpr):
    # token: [N], end_tokens: those of a row, filled up with a negative number -> [N] bool
    found = token < 0
    for end in tl.static_range(ENDS):
        found |= token == tl.load(end_tokens + end)
    return found


@triton.jit
def done_by_rules(worst_finished, best_score, divisor, EARLY_STOPPING: tl.constexpr):
    # enough beams are finished and the running ones cannot be better
    done = worst_finished > IMPOSSIBLE / 2
    if EARLY_STOPPING != True:  # noqa: E712
        done &= worst_finished >= best_score.to(tl.float64) / divisor
    return done


@triton.jit
def follow(table, parents, begin, end, stride, BEAMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # table: [BEAMS, stride], parents: [ROWS]; each row takes the columns begin..end-1 of its parent
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)[None, :]
    changes = ((row < BEAMS) & (row != parents))[:, None]
    source, target = table + parents[:, None] * stride + column, table + row[:, None] * stride + column
    for start in range(begin, end, BLOCK):
        moved = changes & (start + column < end)
        entries = tl.load(source + start, mask=moved)
        # every row is read before one is written
        tl.debug_barrier()
        tl.store(target + start, entries, mask=moved)


@triton.jit
def count_larger(keys):
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
    place = count_larger(tl.where(enters, -order, -WIDTH)) + tl.sum(ahead.to(tl.int32), 1)
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


@triton.jit
def beam_step_kernel(
    scores, logprobs, tokens, rows, end_tokens, divisors, lengths, prompt_lengths, limits,
    running_scores, finished_beams, history, step_output, finished, row_tokens, ids, slot_table, positions,
    BEAMS: tl.constexpr, COUNT: tl.constexpr, CANDIDATES: tl.constexpr, ENDS: tl.constexpr, MAX_ENDS: tl.constexpr,
    COUNTS_PROMPT: tl.constexpr, EARLY_STOPPING: tl.constexpr, READS_IDS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # scores, logprobs, tokens: [n, COUNT] and rows: [n], groups of BEAMS consecutive rows; the others as in BatchState
    admit_next(OVERLAP)
    prompt = tl.program_id(0).to(tl.int64)
    first = tl.load(rows + prompt * BEAMS)
    i, row = tl.arange(0, WIDTH), tl.arange(0, ROWS)
    exists, parent = i < BEAMS * COUNT, tl.minimum(i // COUNT, BEAMS - 1)
    begin, limit = tl.load(prompt_lengths + first), tl.load(limits + first)
    was_done = tl.load(finished + first)
    running = tl.load(running_scores + first + parent)
    beams = finished_beams + first * COLUMNS
    columns, finished_score = load_finished(beams, BEAMS, ROWS)
    wait_for_previous(OVERLAP)
    candidate = prompt * BEAMS * COUNT + i
    score = tl.load(scores + candidate, mask=exists, other=float("-inf")) + running
    logprob = tl.load(logprobs + candidate, mask=exists, other=0.0)
    token = tl.load(tokens + candidate, mask=exists, other=0)
    length = tl.load(lengths + first)
    ended = is_end(token, end_tokens + first * MAX_ENDS, ENDS)

    # what divides scores is read before the ranks are counted, which hides its latency
    generated = length - begin
    at_limit = generated + 1 >= limit
    counted = length if COUNTS_PROMPT else generated
    row_divisors = divisors + first * (positions + 1)
    divisor = tl.load(row_divisors + counted + 1)
    end_divisor = tl.load(row_divisors + counted) if COUNTS_PROMPT else divisor
    best_divisor = divisor
    if EARLY_STOPPING == "never":
        best_divisor = tl.maximum(divisor, tl.load(row_divisors + counted - generated + limit))

    rank = count_larger(sort_keys(score, i))
    open_keys = sort_keys(tl.where(ended, IMPOSSIBLE, score), rank)
    next_row = count_larger(tl.where(rank < CANDIDATES, open_keys, EMPTY))
    goes_on = next_row < BEAMS

    exact = score.to(tl.float64)
    finishes = (ended if COUNTS_PROMPT else tl.where(at_limit, True, ended)) & (rank < tl.where(was_done, 0, BEAMS))
    worst = merge(
        beams, columns, finished_score, exact / end_divisor, finishes, rank, logprob, token, parent, length,
        BEAMS, ROWS, WIDTH,
    )  # fmt: skip
    leads = (rank if COUNTS_PROMPT else next_row) == 0
    best_score = tl.sum(tl.where(leads, score, 0.0))
    done = was_done | done_by_rules(worst, best_score, best_divisor, EARLY_STOPPING)
    if COUNTS_PROMPT:  # noqa: SIM102
        if at_limit & ~done:
            # those that would go on are finished too
            tl.debug_barrier()
            columns, finished_score = load_finished(beams, BEAMS, ROWS)
            merge(
                beams, columns, finished_score, exact / divisor, goes_on, next_row, logprob, token, parent, length,
                BEAMS, ROWS, WIDTH,
            )  # fmt: skip
    done |= at_limit
    tl.store(finished + first + row, done, mask=row < BEAMS)
    tl.store(step_output + first * 2, done.to(tl.int32))
    best_logprob = tl.load(logprobs + prompt * BEAMS * COUNT)
    tl.store(step_output + first * 2 + 1, best_logprob.to(tl.int32, bitcast=True))

    new = first + next_row
    tl.store(running_scores + new, score, mask=goes_on)
    tl.store(row_tokens + new, token, mask=goes_on)
    store_choice(history + (new * positions + length) * 3, logprob, token, parent, goes_on)
    parents = tl.sum(tl.where(next_row[:, None] == row[None, :], parent[:, None], 0), 0)
    follow(slot_table + first * positions, parents, begin, length, positions, BEAMS, ROWS, BLOCK)
    if READS_IDS:
        follow(ids + first * positions, parents, begin, length, positions, BEAMS, ROWS, BLOCK)
    tl.store(ids + new * positions + length, token, mask=goes_on)


def launch_beam_step(search: BeamSearch, scores: Tensor, logprobs: Tensor, tokens: Tensor, rows: Tensor) -> None:
    # scores, logprobs, tokens: [n, count], rows: [n]
    state, beams, count = search.state, search.beams, scores.shape[1]
    width, row_block = triton.next_power_of_2(beams * count), triton.next_power_of_2(beams)
    beam_step_kernel[(len(rows) // beams,)](
        scores, logprobs, tokens, rows, state.end_tokens, state.divisors, state.lengths, state.prompt_lengths,
        state.limits, state.running_scores, state.finished_beams, state.history, state.step_output, state.finished,
        state.tokens, state.ids, state.slot_table, state.positions,
        BEAMS=beams, COUNT=count, CANDIDATES=search.candidates, ENDS=search.ends, MAX_ENDS=state.end_tokens.shape[1],
        COUNTS_PROMPT=search.counts_prompt, EARLY_STOPPING=search.early_stopping, READS_IDS=search.lm_head.reads_ids,
        ROWS=row_block, WIDTH=width, BLOCK=MOVED // row_block, **launch_options(scores.device, max(1, width // 32)),
    )  # fmt: skip
