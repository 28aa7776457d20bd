"""Which requests the engine has and how many may wait; what the engine tells of them is taken in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.generation.outputs import Completion
from modelscope_polylm.openai_requests import FINISH_REASONS
from modelscope_polylm.serve.errors import BusyError, EndingError, RequestError, UnexpectedError
from modelscope_polylm.serve.requests import (
    GrowingText,
    ParsedRequest,
    RequestState,
    text_to_score,
    wanted_answers,
    whole_choice,
)

if TYPE_CHECKING:
    from modelscope_polylm.backends.base import Delta, DeltaStream, Request
    from modelscope_polylm.backends.native import NativeBackend
    from modelscope_polylm.generation.outputs import TokenScores
    from modelscope_polylm.generator import TextGenerator
    from modelscope_polylm.inputs import Prompt
    from modelscope_polylm.serve.middleware import Metrics

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Submitted:
    """A request that the engine has.

    Attributes:
        deltas: cancels it when it is closed.
        texts: of each prompt, if they grow.
        answers: those that are returned with their prompts, while they are scored.
        completions: of the prompts that have ended, or of the texts that are scored.
    """

    deltas: DeltaStream
    texts: list[GrowingText] = dataclasses.field(default_factory=list)
    answers: list[tuple[Prompt, Completion]] | None = None
    completions: dict[int, list[Completion]] = dataclasses.field(default_factory=dict)


class RequestQueue:
    """Hands requests to the engine as they come. Everything except the engine happens in the event loop.

    Args:
        generator: the loaded model, on the native backend.
        metrics: are kept up to date.
        max_rows: rows that the engine runs at once.
        max_queue: requests that may wait for rows.
    """

    def __init__(self, generator: TextGenerator, metrics: Metrics, max_rows: int = 32, max_queue: int = 64) -> None:
        self.max_rows, self._max_queue = max_rows, max_queue
        self.is_ending = False
        self._generator, self._metrics = generator, metrics
        backend: NativeBackend = generator.backend  # type: ignore[assignment]
        self._engine = backend.engine
        self._engine.max_rows = max_rows
        self._submitted: dict[RequestState, _Submitted] = {}
        self._told: list[tuple[RequestState, Delta | BaseException]] = []
        self._lock = threading.Lock()
        self._recent_seconds = 1.0
        metrics.watch(self._engine.status, lambda: len(self._without_rows()), self._running_rows)

    def submit(self, request: ParsedRequest) -> RequestState:
        """Begin a request, which has to be left when nobody waits for it any more.

        Raises:
            BusyError: too many requests wait.
            EndingError: the server is about to end.
            PolyLMError: the engine refuses it.
        """
        if self.is_ending:
            raise EndingError("The server is shutting down: ask another one, or later.")
        if len(self._without_rows(request.rows)) > self._max_queue:
            raise BusyError(
                f"{self._max_queue} requests are waiting already: try again later.", math.ceil(self._recent_seconds)
            )
        state = RequestState(request)
        if not request.generates:
            self._score(state, [(prompt, Completion([])) for prompt in request.prompts])
            return state
        checked = self._generator.backend.requests([prompt.ids for prompt in request.prompts], request.options)
        growing = [] if request.needs_whole_answers else request.prompts
        tokenizer = self._generator.snapshot.tokenizer
        texts = [GrowingText(prompt, request.stops, tokenizer) for prompt in growing]
        self._submitted[state] = _Submitted(self._begin(state, checked), texts)
        return state

    def leave(self, state: RequestState) -> None:
        """Nobody waits for the request any more."""
        if state.is_open:
            self._metrics.cancelled.inc()
            self._close(state)

    def end(self) -> None:
        """Refuse what waits and what comes from now on; what runs goes on."""
        self.is_ending = True
        for state in [state for state in self._submitted if not state.started]:
            self._fail(state, EndingError("The server is shutting down: ask another one, or later."))

    def stop(self) -> None:
        """Stop what still runs, with its next step."""
        self.end()
        for state in list(self._submitted):
            self._close(state)

    def _begin(self, state: RequestState, requests: Sequence[Request]) -> DeltaStream:
        listener = functools.partial(self._tell, asyncio.get_running_loop(), state)
        return self._engine.submit(requests, listener=listener)

    def _score(self, state: RequestState, answers: list[tuple[Prompt, Completion]]) -> None:
        """Score the tokens of answers, and of their prompts with echo. Raises what the engine refuses."""
        texts = [text_to_score(state.request, *answer) for answer in answers]
        requests = self._generator.backend.scoring_requests(
            [ids for ids, _ in texts], [start for _, start in texts], state.request.best or 0
        )
        self._submitted[state] = _Submitted(self._begin(state, requests), answers=answers)

    def _running_rows(self) -> int:
        return sum(state.request.rows for state in self._submitted if state.started)

    def _without_rows(self, more: int = 0) -> list[int]:
        """Rows of the requests that wait for others to end, among them one that has so many rows and comes last."""
        rows = [state.request.rows for state in self._submitted] + ([more] if more else [])
        totals = itertools.accumulate(rows)
        return [own for own, total in zip(rows, totals, strict=True) if total > self.max_rows]

    def _tell(self, loop: asyncio.AbstractEventLoop, state: RequestState, item: Delta | BaseException) -> None:
        """Called by the engine: one call into the loop for all that is told until it comes to that."""
        with self._lock:
            self._told.append((state, item))
            is_first = len(self._told) == 1
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop is closed when the server has been forced to end
                loop.call_soon_threadsafe(self._take_all)

    def _take_all(self) -> None:
        with self._lock:
            told, self._told = self._told, []
        for state, item in told:
            if not state.is_open:
                continue
            if isinstance(item, BaseException):
                self._fail(state, item)
                continue
            try:
                self._take(state, item)
            except PolyLMError as error:  # an answer that cannot be scored
                self._fail(state, error)

    def _take(self, state: RequestState, delta: Delta) -> None:
        request, submitted = state.request, self._submitted[state]
        if not state.started:
            state.started = True
            self._metrics.queue_seconds.observe(time.monotonic() - state.arrived)
        if delta.completions is not None:
            submitted.completions[delta.request] = delta.completions
        if not request.needs_whole_answers:
            self._take_text(state, submitted.texts[delta.request], delta)
        elif len(submitted.completions) == len(submitted.answers or request.prompts):
            self._take_answers(state, [submitted.completions[index] for index in sorted(submitted.completions)])
        self._count(state, 0 if request.uses_beams else len(delta.ids))
        state.notify()
        if all(choice.finish_reason is not None for choice in state.choices):
            self._close(state)

    def _take_text(self, state: RequestState, text: GrowingText, delta: Delta) -> None:
        choice = state.choices[delta.request]
        choice.text += text.push(delta.ids, delta.completions is not None)
        choice.tokens += len(delta.ids)
        if delta.finish_reason is not None:
            choice.finish_reason = FINISH_REASONS[delta.finish_reason]
        self._note_text(state, bool(choice.text))

    def _take_answers(self, state: RequestState, completions: Sequence[Sequence[Completion]]) -> None:
        request, answers = state.request, self._submitted[state].answers
        scores: list[TokenScores | None] = [group[0].scores for group in completions]
        if answers is None:
            state.completions = completions
            answers = wanted_answers(request, completions)
            scores = [None] * len(answers)
            if request.uses_beams:
                self._count(state, sum(len(completion.ids) for group in completions for completion in group))
            if request.best is not None:
                self._score(state, answers)
                return
        tokenizer = self._generator.snapshot.tokenizer
        state.choices = [
            whole_choice(request, *answer, tokenizer, own) for answer, own in zip(answers, scores, strict=True)
        ]
        self._note_text(state, True)

    def _count(self, state: RequestState, tokens: int) -> None:
        state.generated += tokens
        self._metrics.generated_tokens.inc(tokens)

    def _note_text(self, state: RequestState, has_text: bool) -> None:
        now = time.monotonic()
        if has_text and state.first_text is None:
            state.first_text = now
            self._metrics.first_text_seconds.observe(now - state.arrived)
        elif state.latest_text is not None:
            self._metrics.between_texts_seconds.observe(now - state.latest_text)
        if state.first_text is not None:
            state.latest_text = now

    def _fail(self, state: RequestState, error: BaseException) -> None:
        # an error that explains another one is about the program, not about the request
        is_for_people = isinstance(error, (PolyLMError, RequestError)) and error.__cause__ is None
        if not is_for_people:
            logger.error("A request failed.", exc_info=error)
        state.error = error if is_for_people else UnexpectedError()
        self._close(state)

    def _close(self, state: RequestState) -> None:
        """The request has ended; its rows are free."""
        state.is_open = False
        state.notify()
        if state.error is None and state.started:
            self._recent_seconds += (time.monotonic() - state.arrived - self._recent_seconds) / 8
        self._submitted.pop(state).deltas.close()
