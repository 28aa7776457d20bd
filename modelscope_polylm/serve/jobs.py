"""A request on its way through the server: what the engine gets, and what is known of the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

FinishReason = Literal["stop", "length"]

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import Prompt


@dataclass(frozen=True)
class Work:
    """A request, read and checked.

    Attributes:
        prompts: what the engine gets; several samples of a prompt are several prompts, so that each can stream.
        options: shared by all prompts; `num_return_sequences` is more than 1 with beam search alone.
        stops: stop strings, which the answers' texts do not hold.
        kept: how many answers of each prompt are wanted.
        candidates: how many are computed for it; the most probable ones are kept.
        scored: whether the answers' scores are wanted.
    """

    prompts: Sequence[Prompt]
    options: GenerationOptions
    stops: Sequence[str] = ()
    kept: int = 1
    candidates: int = 1
    scored: bool = False

    @property
    def rows(self) -> int:
        """Rows of the engine's batch that it takes."""
        return len(self.prompts) * max(self.options.num_beams, self.options.num_return_sequences)

    @property
    def needs_whole_answers(self) -> bool:
        """Whether it has to wait for scores or log-probabilities, which the engine tells when its batch has ended."""
        selects = self.candidates > self.kept
        return self.options.num_beams > 1 or self.options.output_logprobs or self.scored or selects

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        copies = 1 if self.options.num_beams > 1 else self.candidates
        return sum(len(prompt.ids) for prompt in self.prompts[::copies])

    def shares_batch_with(self, other: Work) -> bool:
        """Whether both can run in one batch; a seed promises an answer that does not depend on the neighbours."""
        seeded = self.options.do_sample and self.options.seed is not None
        return not seeded and self.options == other.options


@dataclass
class Token:
    """A token of an answer with its natural log-probability; `text` of all tokens together is the answer's text."""

    text: str
    raw: bytes
    logprob: float


@dataclass
class Choice:
    """One answer, as far as it is known.

    Attributes:
        text: the answer so far, without stop strings.
        tokens: how many tokens were generated for it.
        finish_reason: 'stop' or 'length' when it is complete.
        score: as `Answer.score`, if wanted.
        logprobs: its tokens, if wanted; known when it is complete.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    score: float | None = None
    logprobs: list[Token] | None = None


@dataclass(eq=False)
class Job:
    """A request that waits, runs or has ended. All of it belongs to the event loop; other threads may read `is_open`.

    Attributes:
        choices: the answers to be returned, in their order.
        generated: tokens that were generated, those of answers that are not kept included.
        started: whether the engine works on it; from then on refusals are not expected any more.
        error: why it failed.
        is_open: False when it has ended, or nobody waits for it any more.
    """

    work: Work
    choices: list[Choice] = field(default_factory=list)
    generated: int = 0
    started: bool = False
    error: BaseException | None = None
    is_open: bool = True
    arrived: float = field(default_factory=time.monotonic)
    first_text: float | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        beams = self.work.options.num_beams > 1
        prompts = len(self.work.prompts) // (1 if beams else self.work.candidates)
        self.choices = [Choice() for _ in range(prompts * self.work.kept)]

    def notify(self) -> None:
        """Wake who waits for news."""
        self._news.set()

    async def news(self) -> None:
        """Wait until something has changed since the last call. Raises the job's error."""
        await self._news.wait()
        self._news.clear()
        if self.error is not None:
            raise self.error

    async def until_started(self) -> None:
        """Wait for the first step. Raises the job's error."""
        while not self.started and self.is_open:
            await self.news()

    async def until_complete(self) -> None:
        """Wait for the end. Raises the job's error."""
        while self.is_open:
            await self.news()
