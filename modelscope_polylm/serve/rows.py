"""From the engine's token ids to what a client reads: texts while they grow, and whole answers at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelscope_polylm.serve.jobs import Choice, FinishReason, Job, Token, Work
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    from modelscope_polylm.backends.base import Answer
    from modelscope_polylm.generator import Prompt
    from modelscope_polylm.text.tokenizer import PolyLMTokenizer


class Change(NamedTuple):
    """What a step added to a choice of a job."""

    job: Job
    choice: int
    text: str
    tokens: int
    finish_reason: FinishReason | None


class Row:
    """One row of greedy search or sampling while it runs. It has ended when a step that has tokens has none for it."""

    def __init__(self, job: Job, choice: int, prompt: Prompt, tokenizer: PolyLMTokenizer) -> None:
        self.job = job
        self._choice = choice
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt.ids)
        self._stop_text = StopText(job.work.stops)
        self._room = job.work.options.new_tokens(len(prompt.ids))
        self._is_open = job.work.candidates == job.work.kept

    def take(self, ids: Sequence[int]) -> Change | None:
        """Take the tokens of one step, none if the row has ended before it; None if there is nothing to tell."""
        if not (self._is_open and self.job.is_open):
            return None
        text = self._stop_text.push(self._detokenizer.push(ids))
        self._room -= len(ids)
        has_ended = self._stop_text.found or not ids
        reason: FinishReason | None = "stop" if has_ended else "length" if self._room <= 0 else None
        if reason is not None:
            self._is_open = False
            text += self._stop_text.push(self._detokenizer.finish()) + self._stop_text.finish()
        return Change(self.job, self._choice, text, len(ids), None if self.job.work.needs_whole_answers else reason)


def rows_of(jobs: Sequence[Job], tokenizer: PolyLMTokenizer) -> list[Row]:
    """A row for each prompt of the jobs, none with beam search, which has nothing to show before its end."""
    if jobs[0].work.options.num_beams > 1:
        return []
    return [Row(job, index, prompt, tokenizer) for job in jobs for index, prompt in enumerate(job.work.prompts)]


def whole_choices(work: Work, answers: Sequence[Sequence[Answer]], tokenizer: PolyLMTokenizer) -> list[Choice]:
    """The choices of a job whose answers, those of each of its prompts, are complete."""
    beams = work.options.num_beams > 1
    choices = []
    for first in range(0, len(answers), 1 if beams else work.candidates):
        group = answers[first] if beams else [each[0] for each in answers[first : first + work.candidates]]
        if work.candidates > work.kept:
            group = sorted(group, key=_mean_logprob, reverse=True)[: work.kept]
        choices += [_whole_choice(work, work.prompts[first], answer, tokenizer) for answer in group]
    return choices


def _mean_logprob(answer: Answer) -> float:
    return (answer.score or 0.0) / max(len(answer.ids), 1)


def _whole_choice(work: Work, prompt: Prompt, answer: Answer, tokenizer: PolyLMTokenizer) -> Choice:
    detokenizer, stop_text = IncrementalDetokenizer(tokenizer, prompt.ids), StopText(work.stops)
    texts, raw = [], []
    for token in answer.ids:
        texts.append(detokenizer.push([token]))
        byte = tokenizer.byte_value(token)
        raw.append(texts[-1].encode() if byte is None else bytes([byte]))
    text = stop_text.push("".join(texts) + detokenizer.finish()) + stop_text.finish()
    tokens = None
    if answer.logprobs is not None:
        tokens = [Token(*each) for each in zip(texts, raw, answer.logprobs, strict=True)]
        tokens = _up_to(len(text), tokens) if stop_text.found else tokens
    reason: FinishReason = "length" if answer.finish_reason == "length" and not stop_text.found else "stop"
    return Choice(text, len(answer.ids), reason, answer.score if work.scored else None, tokens)


def _up_to(length: int, tokens: Sequence[Token]) -> list[Token]:
    """The tokens that begin before a text of this length ends."""
    kept, position = [], 0
    for token in tokens:
        if position >= length:
            break
        kept.append(token)
        position += len(token.text)
    return kept


class StopText:
    """Passes text on up to the first stop string.

    Args:
        stops: the stop strings; with none, all text passes at once.

    Attributes:
        found: whether a stop string was complete. Text behind it is dropped.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take more text; return what is certain to stand before any stop string."""
        if self.found or not self._stops:
            return "" if self.found else text
        text = self._held + text
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        kept = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back; the text has ended without a stop string."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
