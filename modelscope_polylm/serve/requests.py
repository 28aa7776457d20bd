"""A request on its way through the server: what the engine gets, and what a client reads of its token ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelscope_polylm.generation.outputs import TokenScores
from modelscope_polylm.openai_requests import FINISH_REASONS
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    from modelscope_polylm.backends.base import Completion
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.inputs import Prompt
    from modelscope_polylm.openai_requests import FinishReason
    from modelscope_polylm.text.tokenizer import PolyLMTokenizer


@dataclass(frozen=True)
class ParsedRequest:
    """A request, read and checked.

    Attributes:
        prompts: what the engine gets; several samples of a prompt are several prompts, so that each can stream.
        options: of each prompt; `num_return_sequences` is more than 1 with beam search alone.
        stops: stop strings, which the answers' texts do not hold.
        wanted: how many answers of each prompt are wanted.
        candidates: how many are computed for it; the most probable ones are returned.
        scored: whether the answers' scores are wanted.
        best: how many of the most probable tokens are told for each token; None if the engine's own log-probabilities
            of the answers are enough. Otherwise answers are scored once more when they are complete.
        echo: whether the tokens of the prompts are told, too.
        generates: False if the prompts are only scored.
    """

    prompts: Sequence[Prompt]
    options: Sequence[GenerationOptions]
    stops: Sequence[str] = ()
    wanted: int = 1
    candidates: int = 1
    scored: bool = False
    best: int | None = None
    echo: bool = False
    generates: bool = True

    @property
    def uses_beams(self) -> bool:
        """Whether beam search answers it, which computes all answers of a prompt together."""
        return self.options[0].num_beams > 1

    @property
    def copies(self) -> int:
        """How often each prompt of the request is in `prompts`."""
        return 1 if self.uses_beams else self.candidates

    @property
    def rows(self) -> int:
        """Rows of the engine's batch that it takes."""
        return len(self.prompts) * max(self.options[0].num_beams, self.options[0].num_return_sequences)

    @property
    def needs_whole_answers(self) -> bool:
        """Whether it has to wait for scores or log-probabilities, which the engine tells at an answer's end."""
        selects = self.candidates > self.wanted
        is_told_at_end = self.options[0].output_logprobs or self.scored or self.best is not None
        return self.uses_beams or is_told_at_end or selects

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        return sum(len(prompt.ids) for prompt in self.prompts[:: self.copies])


@dataclass
class Token:
    """A token of a text.

    Attributes:
        name: its text, its byte where it is a part of a character, or the name of a token without text.
        text: what it adds to the text; that of all tokens together is the whole text.
        raw: its bytes.
        logprob: natural log-probability; None if unknown, as for the first token of a prompt.
        best: the most probable tokens at its place, best first, as many as were asked for.
    """

    name: str
    text: str
    raw: bytes
    logprob: float | None = None
    best: list[Token] = field(default_factory=list)


@dataclass
class Choice:
    """One answer, as far as it is known.

    Attributes:
        text: the answer so far, without stop strings.
        tokens: how many tokens were generated for it.
        finish_reason: 'stop' or 'length' when it is complete.
        score: as `Completion.score`, if wanted.
        logprobs: its tokens, if wanted; known when it is complete.
        prompt_logprobs: the prompt's tokens, if wanted.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    score: float | None = None
    logprobs: list[Token] | None = None
    prompt_logprobs: list[Token] | None = None


@dataclass(eq=False)
class RequestState:
    """A request that waits, runs or has ended. All of it belongs to the event loop.

    Attributes:
        choices: the answers to be returned, in their order.
        generated: tokens that were generated, those of answers that are not returned included.
        started: whether the engine works on it; from then on refusals are not expected any more.
        completions: of each prompt, where the request waits for whole answers.
        error: why it failed.
        is_open: False when it has ended, or nobody waits for it any more.
    """

    request: ParsedRequest
    choices: list[Choice] = field(init=False)
    completions: Sequence[Sequence[Completion]] = ()
    generated: int = 0
    started: bool = False
    error: BaseException | None = None
    is_open: bool = True
    arrived: float = field(default_factory=time.monotonic)
    first_text: float | None = None
    latest_text: float | None = None
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        prompts = len(self.request.prompts) // self.request.copies
        self.choices = [Choice() for _ in range(prompts * self.request.wanted)]

    def notify(self) -> None:
        """Wake who waits for a change."""
        self._change.set()

    async def changed(self) -> None:
        """Wait until something has changed since the last call. Raises the request's error."""
        await self._change.wait()
        self._change.clear()
        self._check()

    async def until_started(self) -> None:
        """Wait for the first step. Raises the request's error."""
        while not self.started and self.is_open:
            await self.changed()
        self._check()

    async def until_complete(self) -> None:
        """Wait for the end. Raises the request's error."""
        while self.is_open:
            await self.changed()
        self._check()

    def _check(self) -> None:
        # a request may have failed before anybody waited for it
        if self.error is not None:
            raise self.error


def answer_ids(request: ParsedRequest, completion: Completion) -> list[int]:
    """The tokens of an answer that are told; with echo also its end token, as clients count what follows a prompt."""
    ends = [completion.end_token] if request.echo and completion.end_token is not None else []
    return [*completion.ids, *ends]


def text_to_score(request: ParsedRequest, prompt: Prompt, completion: Completion) -> tuple[list[int], int]:
    """The tokens of a prompt and its answer, and the position of the first one that is scored."""
    return [*prompt.ids, *answer_ids(request, completion)], 1 if request.echo else len(prompt.ids)


def scored_tokens(
    ids: Sequence[int], scores: TokenScores | None, detokenizer: IncrementalDetokenizer, tokenizer: PolyLMTokenizer
) -> list[Token]:
    """The tokens of a text.

    Args:
        ids: of the text.
        scores: of its last tokens, or of what stands before it and of all of its tokens; None if they are unknown.
        detokenizer: stands before the text, and after it in the end.
        tokenizer: the model's.
    """
    tokens = []
    first = len(scores.logprobs) - len(ids) if scores is not None else -len(ids)
    for place, token in enumerate(ids, start=first):
        found = _token(token, detokenizer.push([token]), tokenizer)
        if scores is not None and place >= 0:
            found.logprob = scores.logprobs[place]
            for best, logprob in scores.best[place] if scores.best else ():
                # the token itself goes by one name in both lists
                other = found if best == token else _token(best, _own_text(best, tokenizer), tokenizer)
                found.best.append(Token(other.name, other.text, other.raw, logprob))
        tokens.append(found)
    return tokens


def _own_text(token: int, tokenizer: PolyLMTokenizer) -> str:
    return (tokenizer.piece_bytes(token) or b"").decode(errors="ignore")


def _token(token: int, text: str, tokenizer: PolyLMTokenizer) -> Token:
    byte = tokenizer.byte_value(token)
    raw = text.encode() if byte is None else bytes([byte])
    name = text or (f"bytes:\\x{byte:02x}" if byte is not None else tokenizer.id_to_piece(token))
    return Token(name, text, raw)


class GrowingText:
    """The text of one answer while its tokens come, without stop strings.

    Args:
        prompt: what it answers.
        stops: the stop strings.
        tokenizer: the model's.
    """

    def __init__(self, prompt: Prompt, stops: Sequence[str], tokenizer: PolyLMTokenizer) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt.ids)
        self._stop_text = StopText(stops)

    def push(self, ids: Sequence[int], is_end: bool) -> str:
        """Take new tokens; the text that they add for certain."""
        text = self._stop_text.push(self._detokenizer.push(ids))
        return text + self._stop_text.push(self._detokenizer.finish()) + self._stop_text.finish() if is_end else text


def wanted_answers(
    request: ParsedRequest, completions: Sequence[Sequence[Completion]]
) -> list[tuple[Prompt, Completion]]:
    """The answers that are returned, with their prompts, of those to each of the request's prompts."""
    answers = []
    for first in range(0, len(completions), request.copies):
        found = [each for group in completions[first : first + request.copies] for each in group]
        if request.candidates > request.wanted:
            found = sorted(found, key=_mean_logprob, reverse=True)[: request.wanted]
        answers += [(request.prompts[first], completion) for completion in found]
    return answers


def whole_choice(
    request: ParsedRequest,
    prompt: Prompt,
    completion: Completion,
    tokenizer: PolyLMTokenizer,
    scores: TokenScores | None = None,
) -> Choice:
    """The choice of a complete answer; `scores` are of the tokens of `text_to_score`, if these were scored."""
    if scores is None and completion.logprobs is not None:
        scores = TokenScores(completion.logprobs, [])
    detokenizer, stop_text = IncrementalDetokenizer(tokenizer, prompt.ids), StopText(request.stops)
    ids = answer_ids(request, completion)
    tokens = scored_tokens(ids, scores, detokenizer, tokenizer)
    text = stop_text.push("".join(token.text for token in tokens) + detokenizer.finish()) + stop_text.finish()
    reason = "stop" if stop_text.found else FINISH_REASONS[completion.finish_reason]
    choice = Choice(text, len(completion.ids), reason, completion.score if request.scored else None)
    if scores is not None:
        choice.logprobs = _up_to(len(text), tokens) if stop_text.found else tokens
    if scores is not None and request.echo:
        count = len(scores.logprobs) - len(ids)
        before = TokenScores(scores.logprobs[:count], scores.best[:count])
        choice.prompt_logprobs = scored_tokens(prompt.ids, before, IncrementalDetokenizer(tokenizer), tokenizer)
    return choice


def _mean_logprob(completion: Completion) -> float:
    return (completion.score or 0.0) / max(len(completion.ids), 1)


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
        found: whether a stop string was complete. Text after it is dropped.
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
