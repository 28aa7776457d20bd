"""What the host sees of a running batch: it collects tokens, ends answers, and makes the final answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor

from modelscope_polylm.generation.beam import LOGPROB, PARENT, POSITION, SCORE, BeamSearch
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Request, Rows
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

Update = list[list[int]]
StopTest = Callable[[int], bool]
"""Takes the next token id of one answer; says whether a stop string is complete."""


@dataclasses.dataclass
class Answer:
    """One finished answer.

    Attributes:
        ids: the answer's token ids, without the prompt and without the end token.
        end_token: the end token, if one ended the answer.
        score: beam search: the beam's score; otherwise the sum of the tokens' log-probabilities. None if unknown.
        logprobs: natural log-probability of each token of `ids`, or None if not asked for.
        finish_reason: 'eos' (an end token), 'stop' (a stop string) or 'length'.
    """

    ids: list[int]
    score: float | None = None
    logprobs: list[float] | None = None
    finish_reason: str = "length"
    end_token: int | None = None


class TokenCollector:
    """Collects the tokens of greedy search and sampling, row by row.

    Args:
        requests: the batch.
        group: rows for each request.
        options: end tokens, and what to report.
        new_stop_test: makes a `StopTest` for a request; None if no stop strings were given.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        group: int,
        options: GenerationOptions,
        new_stop_test: Callable[[Request], StopTest] | None,
    ):
        self._requests, self._group, self._options = requests, group, options
        self._ends = set(options.end_tokens)
        rows = [request for request in requests for _ in range(group)]
        self._limits = [request.limit for request in rows]
        self._stop_tests = [new_stop_test(request) for request in rows] if new_stop_test else None
        self._answers = [Answer([]) for _ in rows]
        self._open = set(range(len(rows)))

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return not self._open

    def collect(self, report: Tensor) -> Update:
        """Take the tokens of one step, [rows] int64 on the host; returns the new tokens of each request's first row."""
        update: Update = [[] for _ in self._requests]
        tokens = report.tolist()
        for row in sorted(self._open):
            if self.take(row, tokens[row]) and row % self._group == 0:
                update[row // self._group].append(tokens[row])
        return update

    def is_open(self, row: int) -> bool:
        """Whether a row may still take tokens."""
        return row in self._open

    def take(self, row: int, token: int) -> bool:
        """Take the next token of an open row; says whether it is part of the answer, which an end token is not."""
        answer = self._answers[row]
        if token in self._ends:
            answer.end_token = token
            self._end(row, "eos")
            return False
        answer.ids.append(token)
        if self._stop_tests is not None and self._stop_tests[row](token):
            self._end(row, "stop")
        elif len(answer.ids) >= self._limits[row]:
            self._end(row, "length")
        return True

    def _end(self, row: int, reason: str) -> None:
        self._answers[row].finish_reason = reason
        self._open.discard(row)

    def unscored(self) -> list[list[Answer]]:
        """The answers of each request in the order of their rows; what has not ended was stopped from outside."""
        for row in sorted(self._open):
            self._end(row, "stop")
        return [self._answers[first : first + self._group] for first in range(0, len(self._answers), self._group)]

    def answers(self, rows: Rows) -> list[list[Answer]]:
        """The answers of each request, those with the highest sum of log-probabilities first."""
        logprobs = rows.logprobs.cpu()
        for row, answer in enumerate(self._answers):
            start = len(self._requests[row // self._group].prompt)
            values = logprobs[row, start : start + len(answer.ids)].tolist()
            answer.score = sum(values)
            answer.logprobs = values if self._options.output_logprobs else None
        return [sorted(group, key=lambda answer: -(answer.score or 0.0)) for group in self.unscored()]


class BeamCollector:
    """Waits for beam search and reads the finished beams once."""

    def __init__(self, requests: Sequence[Request], search: BeamSearch, options: GenerationOptions):
        self._requests, self._search, self._options = requests, search, options
        self.finished = False

    def collect(self, report: Tensor) -> Update:
        """Take [prompts] bool, which prompts are done; beam search has nothing final to show before the end."""
        self.finished = bool(report.all())
        return [[] for _ in self._requests]

    def answers(self, rows: Rows) -> list[list[Answer]]:
        """The best `num_return_sequences` beams of each request."""
        finished = self._search.finished.tolist()
        longest = 1 + max(int(beam[POSITION]) for beams in finished for beam in beams)
        history = self._search.history[:, :longest].tolist()
        wanted = self._options.num_return_sequences
        return [
            [self._answer(len(request.prompt), beam, history[index]) for beam in finished[index][:wanted]]
            for index, request in enumerate(self._requests)
        ]

    def _answer(self, start: int, last: list[float], history: list[list[list[float]]]) -> Answer:
        """Walk back from a finished beam's last continuation to its prompt."""
        steps = [last[LOGPROB : PARENT + 1]]
        for position in range(int(last[POSITION]) - 1, start - 1, -1):
            row = int(steps[-1][PARENT - LOGPROB])
            steps.append(history[position][row % self._search.beams])
        ids = [int(token) for _, token, _ in reversed(steps)]
        logprobs = [logprob for logprob, _, _ in reversed(steps)]
        end = ids.pop() if ids[-1] in self._options.end_tokens else None
        values = logprobs[: len(ids)] if self._options.output_logprobs else None
        return Answer(ids, last[SCORE], values, "length" if end is None else "eos", end)


def stop_test_factory(tokenizer: PolyLMTokenizer, texts: Sequence[str]) -> Callable[[Request], StopTest] | None:
    """Makes a fresh test for each answer; None if there are no stop strings."""
    if not texts:
        return None
    longest = max(len(text) for text in texts)

    def new_test(request: Request) -> StopTest:
        detokenizer = IncrementalDetokenizer(tokenizer, request.prompt)
        tail = ""

        def test(token: int) -> bool:
            nonlocal tail
            tail += detokenizer.push([token])
            found = any(text in tail for text in texts)
            tail = tail[max(len(tail) - longest + 1, 0) :]
            return found

        return test

    return new_test
