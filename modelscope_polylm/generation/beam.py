"""Beam search on the device, in fixed shapes: no beam is copied on the host and no step waits for it.

Follows two generations of transformers, chosen by `beam_rules`: '4.31' is `BeamSearchScorer` of the release that
PolyLM was published with; '5' is today's `GenerationMixin._beam_search`.
They differ in the length that divides a score (with or without the prompt, with or without the end token), in what an
unfinished beam may still reach, and in which beams count when the length limit is met.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.generation.lm_head import OutputLayer, is_one_of
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Rows
from modelscope_polylm.network.kernels.dispatch import uses_triton

IMPOSSIBLE = -1.0e9
"""transformers' score of a beam that cannot be chosen."""
SCORE, LOGPROB, TOKEN, PARENT, POSITION = range(5)
"""Columns of a continuation, all exact in fp64: its beam's sum of log-probabilities (in a finished beam divided by the
length), the token's own log-probability, the token, the row that it continues, and the token's position."""
MOST_COMPARED = 512
"""Most candidates of a prompt, of all its beams, that the kernel compares with each other."""


class BeamSearch:
    """Keeps `rows.group` running beams and as many finished ones for each prompt.

    No beam's text is copied: a beam is its last continuation, and `history` tells what each row chose at each position.

    Attributes:
        running_scores: [prompts, beams] fp32, sums of log-probabilities.
        finished: [prompts, beams, 5] fp64, the last continuations of the finished beams, best first.
        history: [prompts, positions, beams, 3] fp64, log-probability, token and parent row of every choice.
        report: [prompts] bool, what the host has to see of each step: which prompts are done.
        length_penalty: the exponent of the next `begin`.
        divisors: [positions + 1] fp64, what divides the score of a beam of each length.
    """

    def __init__(self, rows: Rows, output: OutputLayer, end_tokens: Tensor, options: GenerationOptions):
        prompts, beams, device = rows.prompts, rows.group, rows.tokens.device
        self.rows, self.output, self.end_tokens = rows, output, end_tokens
        self.beams = beams
        self.candidates = max(2, 1 + end_tokens.shape[0]) * beams
        self.counts_prompt = options.beam_rules != "5"
        self.early_stopping = options.early_stopping
        self.length_penalty = options.length_penalty
        self.divisors = torch.ones(rows.positions + 1, dtype=torch.float64, device=device)
        self.running_scores = torch.zeros(prompts, beams, device=device)
        self.finished = torch.zeros(prompts, beams, 5, dtype=torch.float64, device=device)
        self.history = torch.zeros(prompts, rows.positions, beams, 3, dtype=torch.float64, device=device)
        self.report = torch.zeros(prompts, dtype=torch.bool, device=device)
        self._first_rows = torch.arange(prompts, device=device)[:, None] * beams
        self._among_best = torch.arange(self.candidates, device=device) < beams

    def begin(self) -> None:
        """Start a new batch: only the first beam of a prompt counts, for all are equal."""
        lengths = torch.arange(len(self.divisors), dtype=torch.float64, device=self.divisors.device)
        self.divisors.copy_(lengths**self.length_penalty)
        self.running_scores.fill_(IMPOSSIBLE)
        self.running_scores[:, 0] = 0
        self.finished.zero_()
        self.finished[..., SCORE] = IMPOSSIBLE
        self.report.copy_(self.rows.finished.view(-1, self.beams)[:, 0])

    def select(self, hidden: Tensor) -> None:
        """Choose the beams that go on, keep those that end, and note which prompts are done."""
        # hidden: [rows, width]
        count = min(self.candidates, self.output.vocab_limit)
        best = self.output.best(hidden, self.rows, count)
        if self.beams * count > MOST_COMPARED or not uses_triton(*best, self.report):
            self._select_reference(*best)
            return
        from modelscope_polylm.generation.beam_triton import launch_beam_step

        with torch.cuda.device_of(hidden):
            launch_beam_step(self, *best)

    def _select_reference(self, scores: Tensor, logprobs: Tensor, tokens: Tensor) -> None:
        """Plain torch twin of the kernel."""
        # scores, logprobs, tokens: [rows, count]
        found = self._continuations(scores, logprobs, tokens)
        ended = is_one_of(found[..., TOKEN], self.end_tokens)
        at_limit = self._generated() + 1 >= self._of_prompt(self.rows.limits)
        may_finish = ended if self.counts_prompt else ended | at_limit[:, None]
        self._finish(may_finish & self._among_best, found, length_before_end=True)
        best_score = found[:, 0, SCORE]

        kept = torch.where(ended, IMPOSSIBLE, found[..., SCORE]).topk(self.beams).indices
        going_on = _take(found, kept)
        if self.counts_prompt:
            limited = at_limit & ~self._done_by_rules(best_score)
            self._finish(limited[:, None].expand_as(kept), going_on, length_before_end=False)
        else:
            best_score = going_on[:, 0, SCORE]
        self._note_done(at_limit, best_score)
        self._go_on(going_on)

    def _continuations(self, scores: Tensor, logprobs: Tensor, tokens: Tensor) -> Tensor:
        # scores, logprobs, tokens: [rows, count] -> [prompts, candidates, 5], best first
        prompts, count = self.rows.prompts, scores.shape[1]
        scores = (scores.view(prompts, self.beams, -1) + self.running_scores[:, :, None]).view(prompts, -1)
        scores, best = scores.topk(self.candidates)
        parents = self._first_rows + best.div(count, rounding_mode="floor")
        logprobs, tokens = logprobs.view(prompts, -1).gather(1, best), tokens.view(prompts, -1).gather(1, best)
        positions = self._of_prompt(self.rows.lengths)[:, None].expand_as(parents)
        return torch.stack([column.double() for column in (scores, logprobs, tokens, parents, positions)], -1)

    def _finish(self, which: Tensor, found: Tensor, length_before_end: bool) -> None:
        """Merge the continuations `which` into the finished beams of prompts that are not done; the best stay."""
        # which: [prompts, n], found: [prompts, n, 5]
        length = self._of_prompt(self.rows.lengths) + (0 if length_before_end else 1)
        if not self.counts_prompt:
            length = self._generated() + 1
        divided = found[..., SCORE] / self.divisors[length][:, None]
        divided = torch.where(which & ~self.report[:, None], divided, IMPOSSIBLE)
        merged = torch.cat((self.finished, torch.cat((divided[..., None], found[..., LOGPROB:]), -1)), 1)
        self.finished.copy_(_take(merged, merged[..., SCORE].topk(self.beams).indices))

    def _done_by_rules(self, best_score: Tensor) -> Tensor:
        # best_score: [prompts] -> [prompts] bool: enough beams are finished and the running ones cannot be better
        worst = self.finished[:, -1, SCORE]
        full = worst > IMPOSSIBLE / 2
        if self.early_stopping is True:
            return full
        return full & (worst >= best_score / self._best_divisor())

    def _best_divisor(self) -> Tensor:
        # [prompts]: what may at best divide the score of a running beam
        now, limit = self._generated() + 1, self._of_prompt(self.rows.limits)
        if self.counts_prompt:
            now, limit = (length + self._of_prompt(self.rows.prompt_lengths) for length in (now, limit))
        if self.early_stopping != "never":
            return self.divisors[now]
        # scores are below zero, so the larger divisor is the better one
        return torch.maximum(self.divisors[now], self.divisors[limit])

    def _note_done(self, at_limit: Tensor, best_score: Tensor) -> None:
        self.report |= self._done_by_rules(best_score) | at_limit
        self.rows.finished.copy_(self.report.repeat_interleave(self.beams))

    def _go_on(self, chosen: Tensor) -> None:
        # chosen: [prompts, beams, 5]
        self.running_scores.copy_(chosen[..., SCORE])
        here = chosen[:, None, :, POSITION, None].long().expand(-1, 1, -1, 3)
        self.history.scatter_(1, here, chosen[:, None, :, LOGPROB : PARENT + 1])
        parents, tokens = chosen[..., PARENT].long().view(-1), chosen[..., TOKEN].long().view(-1)
        self.rows.reorder(parents, with_ids=self.output.reads_ids)
        self.rows.append(tokens)

    def _generated(self) -> Tensor:
        return self._of_prompt(self.rows.generated())

    def _of_prompt(self, values: Tensor) -> Tensor:
        # values: [rows], equal within a group -> [prompts]
        return values.view(-1, self.beams)[:, 0]


def _take(found: Tensor, indices: Tensor) -> Tensor:
    # found: [prompts, n, 5]; indices: [prompts, m] -> [prompts, m, 5]
    return found.gather(1, indices[..., None].expand(-1, -1, found.shape[2]))
