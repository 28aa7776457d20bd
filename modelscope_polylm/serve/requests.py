"""A request on its way through the server: what the engine gets, and what is known of the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscope_polylm.backends.base import Completion
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.inputs import Prompt
    from modelscope_polylm.openai_requests import FinishReason


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
