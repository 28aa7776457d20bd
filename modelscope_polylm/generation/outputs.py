"""What comes out of a request: new tokens as deltas, and completions at its end."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable, Sequence

from modelscope_polylm.generation.requests import Request
from modelscope_polylm.generation.state import LOGPROB, PARENT, POSITION, SCORE
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer
from modelscope_polylm.text.tokenizer import PolyLMTokenizer


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """How probable given tokens are after those before them.

    Attributes:
        logprobs: natural log-probability of each token.
        best: of each position the most probable tokens and their log-probabilities, best first, as many as were asked
            for.
    """

    logprobs: list[float]
    best: list[list[tuple[int, float]]]


@dataclasses.dataclass
class Completion:
    """One finished answer.

    Attributes:
        ids: the answer's token ids, without the prompt and without the end token.
        end_token: the end token, if one ended the answer.
        score: beam search: the beam's score; otherwise the sum of the tokens' log-probabilities. None if unknown.
        logprobs: natural log-probability of each token of `ids`, or None if not asked for.
        finish_reason: 'eos' (an end token), 'stop' (a stop string) or 'length'.
        scores: of the prompt's own tokens, if these were asked for; `ids` is empty then.
    """

    ids: list[int]
    score: float | None = None
    logprobs: list[float] | None = None
    finish_reason: str = "length"
    end_token: int | None = None
    scores: TokenScores | None = None


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is new and final of one request.

    Attributes:
        request: its index among those that were submitted together.
        ids: new token ids of its best answer; none in the first delta, which tells that the request has begun. Where
            it is not known before the end which answer that is (several answers, beam search), all come at the end.
        finish_reason: of the best answer, on the last delta of a request; None before.
        completions: the answers, best first, on the last delta; None before.
    """

    request: int
    ids: list[int]
    finish_reason: str | None = None
    completions: list[Completion] | None = None


Deliver = Callable[[Delta | BaseException], None]
"""Takes each delta, or the error that ends all requests that were submitted together; it must return at once."""


class DeltaStream:
    """Reads the deltas of requests that were submitted together. Closing or dropping it cancels what has not ended.

    Args:
        requests: how many.
        cancel: called when the reader goes away before the end.
    """

    def __init__(self, requests: int, cancel: Callable[[], None]) -> None:
        self._items: queue.SimpleQueue[Delta | BaseException] = queue.SimpleQueue()
        self._open = requests
        self._cancel = cancel

    @property
    def deliver(self) -> Deliver:
        """Hands over deltas; it does not keep the stream alive."""
        return self._items.put

    def __iter__(self) -> DeltaStream:
        return self

    def __next__(self) -> Delta:
        """The next delta; waits for it. Raises what ended the requests."""
        if not self._open:
            raise StopIteration
        try:
            item = self._items.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if isinstance(item, BaseException):
            self._open = 0
            raise item
        if item.completions is not None:
            self._open -= 1
        return item

    def completions(self) -> list[list[Completion]]:
        """Wait for the end; the answers of each request, best first."""
        found: dict[int, list[Completion]] = {}
        for delta in self:
            if delta.completions is not None:
                found[delta.request] = delta.completions
        return [found[index] for index in sorted(found)]

    def close(self) -> None:
        """Cancel what has not ended."""
        if self._open:
            self._open = 0
            self._cancel()

    def __del__(self) -> None:
        self.close()


class StopStrings:
    """Says when an answer's text contains a stop string (transformers' StopStringCriteria, on the text itself).

    Args:
        tokenizer: makes the text.
        prompt: what the answer follows.
        texts: the stop strings.
    """

    def __init__(self, tokenizer: PolyLMTokenizer, prompt: Sequence[int], texts: Sequence[str]) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt)
        self._texts, self._longest = texts, max(map(len, texts))
        self._tail = ""

    def push(self, token: int) -> bool:
        """Take the next token; whether one of the texts is complete."""
        self._tail += self._detokenizer.push([token])
        found = any(text in self._tail for text in self._texts)
        self._tail = self._tail[max(len(self._tail) - self._longest + 1, 0) :]
        return found


class TokenCollector:
    """Collects the tokens of one request's answers, row by row; the way of greedy search and sampling.

    Args:
        request: the request.
        tokenizer: reads the text for stop strings.
    """

    def __init__(self, request: Request, tokenizer: PolyLMTokenizer) -> None:
        self._request, self._tokenizer = request, tokenizer
        self.restart()

    def restart(self) -> None:
        """Begin again without any token."""
        count, texts = self._request.options.num_return_sequences, self._request.options.stop_texts
        self._completions = [Completion([], logprobs=[]) for _ in range(count)]
        self._stops = [StopStrings(self._tokenizer, self._request.prompt, texts) for _ in range(count)] if texts else []
        self._open = set(range(count))

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return not self._open

    def is_open(self, row: int) -> bool:
        """Whether an answer may still take tokens."""
        return row in self._open

    def ids(self, row: int) -> list[int]:
        """The tokens of an answer so far."""
        return self._completions[row].ids

    def take(self, row: int, token: int, logprob: float | None = None) -> bool:
        """Take the next token of an open row; whether it is part of the answer, which an end token is not."""
        completion = self._completions[row]
        if token in self._request.options.end_tokens:
            completion.end_token = token
            self.end(row, "eos")
            return False
        completion.ids.append(token)
        if logprob is not None and completion.logprobs is not None:
            completion.logprobs.append(logprob)
        if self._stops and self._stops[row].push(token):
            self.end(row, "stop")
        elif len(completion.ids) >= self._request.max_new_tokens:
            self.end(row, "length")
        return True

    def end(self, row: int, reason: str) -> None:
        """End an answer."""
        self._completions[row].finish_reason = reason
        self._open.discard(row)

    def completions(self) -> list[Completion]:
        """The answers, those with the highest sum of log-probabilities first where these are known."""
        for completion in self._completions:
            if completion.logprobs is not None and len(completion.logprobs) == len(completion.ids):
                completion.score = sum(completion.logprobs)
            if not self._request.options.output_logprobs:
                completion.logprobs = None
        return sorted(self._completions, key=lambda completion: -(completion.score or 0.0))


def token_scores(scores: list[list[float]], best: int) -> TokenScores:
    """The scores of a text's tokens, with `best` tokens for each.

    Args:
        scores: [tokens][1 + 2 * n] as `score_tokens` gives them, with n of at least `best`.
        best: how many are wanted.
    """
    first_id = 1 + len(scores[0]) // 2 if scores else 1
    pairs = (zip(each[first_id : first_id + best], each[1 : 1 + best], strict=True) for each in scores)
    return TokenScores(
        [each[0] for each in scores], [[(int(token), logprob) for token, logprob in each] for each in pairs]
    )


def beam_completions(
    request: Request, finished: list[list[float]], history: list[list[list[float]]]
) -> list[Completion]:
    """The best beams of a request, as many as it asks for.

    Args:
        request: the request.
        finished: the finished beams' last continuations (see `generation.state`), best first.
        history: [beams][positions] of log-probability, token and parent beam of every choice.
    """
    wanted = request.options.num_return_sequences
    return [_beam_completion(request, last, history) for last in finished[:wanted]]


def _beam_completion(request: Request, last: list[float], history: list[list[list[float]]]) -> Completion:
    # walk back from the last continuation to the prompt
    steps = [last[LOGPROB : PARENT + 1]]
    for position in range(int(last[POSITION]) - 1, len(request.prompt) - 1, -1):
        steps.append(history[int(steps[-1][PARENT - LOGPROB])][position])
    ids = [int(token) for _, token, _ in reversed(steps)]
    logprobs = [logprob for logprob, _, _ in reversed(steps)]
    end = ids.pop() if ids[-1] in request.options.end_tokens else None
    values = logprobs[: len(ids)] if request.options.output_logprobs else None
    return Completion(ids, last[SCORE], values, "length" if end is None else "eos", end)
