"""Beam search on the device, in fixed shapes: no beam is copied on the host and no step waits for it.

Follows two generations of transformers, chosen by `beam_rules`: '4.31' is `BeamSearchScorer` of the release that
PolyLM was published with; '5' is today's `GenerationMixin._beam_search`.
They differ in the length that divides a score (with or without the prompt, with or without the end token), in what an
unfinished beam may still reach, and in which beams count when the length limit is met.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.generation.lm_head import LMHead
from modelscope_polylm.generation.state import (
    IMPOSSIBLE,
    LOGPROB,
    PARENT,
    POSITION,
    SCORE,
    TOKEN,
    BatchState,
    is_one_of,
)
from modelscope_polylm.network.kernels.dispatch import uses_triton

MAX_COMPARED = 512
"""Most candidates of a prompt, of all its beams, that the kernel compares with each other."""


class BeamSearch:
    """Keeps the running and the finished beams of groups of rows, one group for each prompt.

    No beam's text is copied: a beam is its last continuation, and `state.history` tells what each beam chose at each
    position.

    Args:
        state: the batch.
        lm_head: makes the candidates.
        beams: rows of a group.
        ends: the most end tokens of a request.
        counts_prompt: whether lengths count the prompt ('4.31').
        early_stopping: True, False or 'never', as in transformers.
    """

    def __init__(
        self,
        state: BatchState,
        lm_head: LMHead,
        beams: int,
        ends: int,
        counts_prompt: bool,
        early_stopping: bool | str,
    ):
        self.state, self.lm_head, self.beams, self.ends = state, lm_head, beams, ends
        self.candidates = max(2, 1 + ends) * beams
        self.counts_prompt, self.early_stopping = counts_prompt, early_stopping
        self._among_best = torch.arange(self.candidates, device=state.device) < beams

    def select(self, hidden: Tensor, rows: Tensor) -> None:
        """Choose the beams that go on, keep those that end, and note which prompts are done."""
        # hidden: [n, hidden_size], rows: [n] int64, groups of `beams` consecutive rows
        count = min(self.candidates, self.lm_head.vocab_limit)
        best = self.lm_head.best(hidden, self.state, rows, count)
        if self.beams * count > MAX_COMPARED or not uses_triton(*best, self.state.finished):
            self._select_reference(*best, rows)
            return
        from modelscope_polylm.generation.beam_triton import launch_beam_step

        with torch.cuda.device_of(hidden):
            launch_beam_step(self, *best, rows)

    def _select_reference(self, scores: Tensor, logprobs: Tensor, tokens: Tensor, rows: Tensor) -> None:
        """The reference of the kernel, in plain torch."""
        # scores, logprobs, tokens: [n, count], rows: [n]
        found = self._continuations(scores, logprobs, tokens, rows)
        firsts = rows[:: self.beams]
        done = self.state.finished[firsts]
        ended = is_one_of(found[..., TOKEN].flatten(), self._end_tokens(firsts)).view(found.shape[:2])
        at_limit = self.state.generated(firsts) + 1 >= self.state.limits[firsts]
        may_finish = ended if self.counts_prompt else ended | at_limit[:, None]
        self._finish(may_finish & self._among_best & ~done[:, None], found, rows, length_before_end=True)
        best_score = found[:, 0, SCORE]

        going_on = found.gather(1, _columns(torch.where(ended, IMPOSSIBLE, found[..., SCORE]).topk(self.beams).indices))
        if self.counts_prompt:
            limited = at_limit & ~done & ~self._done_by_rules(best_score, rows)
            self._finish(limited[:, None].expand(-1, self.beams), going_on, rows, length_before_end=False)
        else:
            best_score = going_on[:, 0, SCORE]
        done = done | self._done_by_rules(best_score, rows) | at_limit
        self.state.finished[rows] = done.repeat_interleave(self.beams)
        self.state.step_output[firsts] = torch.stack((done.int(), logprobs[:: self.beams, 0].view(torch.int32)), 1)
        self._go_on(going_on, rows)

    def _continuations(self, scores: Tensor, logprobs: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
        # scores, logprobs, tokens: [n, count] -> [prompts, candidates, 5], best first
        prompts, count = len(rows) // self.beams, scores.shape[1]
        scores = (scores + self.state.running_scores[rows, None]).view(prompts, -1)
        scores, best = scores.topk(self.candidates)
        parents = best.div(count, rounding_mode="floor")
        logprobs, tokens = logprobs.view(prompts, -1).gather(1, best), tokens.view(prompts, -1).gather(1, best)
        positions = self.state.lengths[rows[:: self.beams], None].expand_as(parents)
        return torch.stack([column.double() for column in (scores, logprobs, tokens, parents, positions)], -1)

    def _end_tokens(self, firsts: Tensor) -> Tensor:
        # firsts: [prompts] -> [prompts * candidates, ends]
        return self.state.end_tokens[firsts, : self.ends].repeat_interleave(self.candidates, 0)

    def _finish(self, which: Tensor, found: Tensor, rows: Tensor, length_before_end: bool) -> None:
        """Merge the continuations `which` into the finished beams; the best stay."""
        # which: [prompts, m], found: [prompts, m, 5], rows: [n]
        firsts = rows[:: self.beams]
        length = self.state.generated(firsts) + 1
        if self.counts_prompt:
            length = self.state.lengths[firsts] + (0 if length_before_end else 1)
        divided = torch.where(which, found[..., SCORE] / self._divisor(length, firsts)[:, None], IMPOSSIBLE)
        before = self.state.finished_beams[rows].view(len(firsts), self.beams, -1)
        merged = torch.cat((before, torch.cat((divided[..., None], found[..., LOGPROB:]), -1)), 1)
        best = merged.gather(1, _columns(merged[..., SCORE].topk(self.beams).indices))
        self.state.finished_beams[rows] = best.flatten(0, 1)

    def _divisor(self, length: Tensor, firsts: Tensor) -> Tensor:
        # length, firsts: [prompts] -> what divides the score of a beam of this length, fp64
        return self.state.divisors[firsts, length.long()]

    def _done_by_rules(self, best_score: Tensor, rows: Tensor) -> Tensor:
        # best_score: [prompts] -> [prompts] bool: enough beams are finished and the running ones cannot be better
        worst = self.state.finished_beams[rows[self.beams - 1 :: self.beams], SCORE]
        full = worst > IMPOSSIBLE / 2
        if self.early_stopping is True:
            return full
        return full & (worst >= best_score / self._best_divisor(rows[:: self.beams]))

    def _best_divisor(self, firsts: Tensor) -> Tensor:
        # firsts: [prompts] -> what may at best divide the score of a running beam
        now, limit = self.state.generated(firsts) + 1, self.state.limits[firsts]
        if self.counts_prompt:
            now, limit = (length + self.state.prompt_lengths[firsts] for length in (now, limit))
        if self.early_stopping != "never":
            return self._divisor(now, firsts)
        # scores are below zero, so the larger divisor is the better one
        return torch.maximum(self._divisor(now, firsts), self._divisor(limit, firsts))

    def _go_on(self, chosen: Tensor, rows: Tensor) -> None:
        # chosen: [prompts, beams, 5], rows: [n]
        state, chosen = self.state, chosen.flatten(0, 1)
        state.running_scores[rows] = chosen[:, SCORE].float()
        state.history[rows, chosen[:, POSITION].long()] = chosen[:, LOGPROB : PARENT + 1]
        parents = rows[:: self.beams].repeat_interleave(self.beams) + chosen[:, PARENT].long()
        tokens = chosen[:, TOKEN].long()
        state.reorder(rows, parents, with_ids=self.lm_head.reads_ids)
        state.tokens[rows] = tokens
        state.ids[rows, state.lengths[rows].long()] = tokens


def _columns(indices: Tensor) -> Tensor:
    # indices: [prompts, m] -> [prompts, m, 5], to gather continuations with
    return indices[..., None].expand(-1, -1, 5)
