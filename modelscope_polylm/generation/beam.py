"""Beam search on the device, in fixed shapes: no beam is copied on the host and no step waits for it.

Follows two generations of transformers, chosen by `beam_rules`: '4.31' is `BeamSearchScorer` of the release that
PolyLM was published with; '5' is today's `GenerationMixin._beam_search`.
They differ in the length that divides a score (with or without the prompt, with or without the end token), in what an
unfinished beam may still reach, and in which beams count when the length limit is met.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.output import OutputLayer, is_one_of, scalar
from modelscope_polylm.generation.rows import Rows

IMPOSSIBLE = -1.0e9
"""transformers' score of a beam that cannot be chosen."""


class BeamSearch:
    """Keeps `rows.group` running beams and as many finished ones for each prompt.

    Attributes:
        running_scores: [prompts, beams] fp32, sums of log-probabilities.
        finished_scores: [prompts, beams] fp64, divided by the length, best first.
        finished_ids, finished_logprobs: [prompts, beams, positions], prompt and answer of the finished beams.
        finished_lengths: [prompts, beams] int32, of prompt and answer, the end token included.
        report: [prompts] bool, what the host has to see of each step: which prompts are done.
    """

    def __init__(self, rows: Rows, output: OutputLayer, end_tokens: Tensor, options: GenerationOptions):
        prompts, beams, device = rows.prompts, rows.group, rows.tokens.device
        self.rows, self.output, self.end_tokens = rows, output, end_tokens
        self.beams = beams
        self.candidates = max(2, 1 + end_tokens.shape[0]) * beams
        self.counts_prompt = options.beam_rules != "5"
        self.early_stopping = options.early_stopping
        self.length_penalty = scalar(options.length_penalty, device)
        self.running_scores = torch.zeros(prompts, beams, device=device)
        self.finished_scores = torch.zeros(prompts, beams, dtype=torch.float64, device=device)
        self.finished_ids = torch.zeros(prompts, beams, rows.positions, dtype=torch.int64, device=device)
        self.finished_logprobs = torch.zeros(prompts, beams, rows.positions, device=device)
        self.finished_lengths = torch.zeros(prompts, beams, dtype=torch.int32, device=device)
        self.report = torch.zeros(prompts, dtype=torch.bool, device=device)

    def begin(self) -> None:
        """Start a new batch: only the first beam of a prompt counts, for all are equal."""
        self.running_scores.fill_(IMPOSSIBLE)
        self.running_scores[:, 0] = 0
        self.finished_scores.fill_(IMPOSSIBLE)
        self.finished_lengths.zero_()
        self.report.copy_(self.rows.finished.view(-1, self.beams)[:, 0])

    def select(self, hidden: Tensor) -> None:
        """Choose the beams that go on, keep those that end, and note which prompts are done."""
        # hidden: [rows, width]
        scores, logprobs, tokens, parents = self._continuations(hidden)
        ended = is_one_of(tokens, self.end_tokens)
        at_limit = self._generated() + 1 >= self._of_prompt(self.rows.limits)
        may_finish = ended if self.counts_prompt else ended | at_limit[:, None]
        may_finish = may_finish & (torch.arange(self.candidates, device=tokens.device) < self.beams)
        self._finish(may_finish, scores, logprobs, tokens, parents, length_before_end=True)
        best_score = scores[:, 0]

        kept = torch.where(ended, IMPOSSIBLE, 0.0).add(scores).topk(self.beams).indices
        scores, logprobs, tokens, parents = (values.gather(1, kept) for values in (scores, logprobs, tokens, parents))
        if self.counts_prompt:
            going_on = (at_limit & ~self._done_by_rules(best_score))[:, None].expand_as(tokens)
            self._finish(going_on, scores, logprobs, tokens, parents, length_before_end=False)
        else:
            best_score = scores[:, 0]
        self._note_done(at_limit, best_score)
        self._go_on(scores, logprobs, tokens, parents)

    def _continuations(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # hidden: [rows, width] -> scores, logprobs, tokens, parent rows: [prompts, candidates], best first
        prompts, count = self.rows.prompts, min(self.candidates, self.output.vocab_limit)
        scores, logprobs, tokens = self.output.best(hidden, self.rows, count)
        scores = (scores.view(prompts, self.beams, -1) + self.running_scores[:, :, None]).view(prompts, -1)
        scores, best = scores.topk(self.candidates)
        first_rows = torch.arange(prompts, device=hidden.device)[:, None] * self.beams
        parents = first_rows + best.div(count, rounding_mode="floor")
        return scores, logprobs.view(prompts, -1).gather(1, best), tokens.view(prompts, -1).gather(1, best), parents

    def _finish(
        self, which: Tensor, scores: Tensor, logprobs: Tensor, tokens: Tensor, parents: Tensor, length_before_end: bool
    ) -> None:
        """Merge the candidates `which` into the finished beams of prompts that are not done; the best stay."""
        # all: [prompts, n]
        positions = self.rows.lengths.long()[parents]
        length = self._of_prompt(self.rows.lengths) + (0 if length_before_end else 1)
        if not self.counts_prompt:
            length = self._generated() + 1
        divided = scores.double() / length.double()[:, None] ** self.length_penalty.double()
        divided = torch.where(which & ~self.report[:, None], divided, IMPOSSIBLE)
        ids = self.rows.ids[parents].scatter(2, positions[..., None], tokens[..., None])
        token_logprobs = self.rows.logprobs[parents].scatter(2, positions[..., None], logprobs[..., None])
        lengths = (positions + 1).int()
        merged, best = torch.cat((self.finished_scores, divided), 1).topk(self.beams)
        self.finished_scores.copy_(merged)
        for kept, new in (
            (self.finished_ids, ids),
            (self.finished_logprobs, token_logprobs),
            (self.finished_lengths, lengths),
        ):
            kept.copy_(_gather(torch.cat((kept, new), 1), best))

    def _done_by_rules(self, best_score: Tensor) -> Tensor:
        # best_score: [prompts] -> [prompts] bool: enough beams are finished and the running ones cannot be better
        full = self.finished_scores[:, -1] > IMPOSSIBLE / 2
        if self.early_stopping is True:
            return full
        length = self._reachable_length()
        reachable = best_score.double() / length.double() ** self.length_penalty.double()
        return full & (self.finished_scores[:, -1] >= reachable)

    def _reachable_length(self) -> Tensor:
        # [prompts]: the length by which the score of a running beam may at best be divided
        now, limit = self._generated() + 1, self._of_prompt(self.rows.limits)
        if self.early_stopping == "never":
            now = torch.where(self.length_penalty > 0, limit, now)
        return now + self._of_prompt(self.rows.prompt_lengths) if self.counts_prompt else now

    def _note_done(self, at_limit: Tensor, best_score: Tensor) -> None:
        self.report |= self._done_by_rules(best_score) | at_limit
        self.rows.finished.copy_(self.report.repeat_interleave(self.beams))

    def _go_on(self, scores: Tensor, logprobs: Tensor, tokens: Tensor, parents: Tensor) -> None:
        # all: [prompts, beams]
        self.running_scores.copy_(scores)
        self.rows.reorder(parents.reshape(-1))
        self.rows.append(tokens.reshape(-1), logprobs.reshape(-1))

    def _generated(self) -> Tensor:
        return self._of_prompt(self.rows.generated())

    def _of_prompt(self, values: Tensor) -> Tensor:
        # values: [rows], equal within a group -> [prompts]
        return values.view(-1, self.beams)[:, 0]


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    # values: [prompts, n] or [prompts, n, positions]; indices: [prompts, beams]
    if values.dim() == 3:
        indices = indices[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, indices)
