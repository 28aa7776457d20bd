"""The way of a request: read it, queue it, wait or stream, and free its rows whatever happens."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.serve.errors import RequestError, UnknownModelError, refusal_of
from modelscope_polylm.serve.middleware import Figures, Metrics, set_figures
from modelscope_polylm.serve.parsing import note_of
from modelscope_polylm.serve.queue import RequestQueue
from modelscope_polylm.serve.requests import ParsedRequest, RequestState
from modelscope_polylm.serve.responses import Format, usage_of

logger = logging.getLogger(__name__)

HEADERS_SECONDS = 0.2
"""A stream's headers wait so long for its start, so that a request that fails at once gets the status of its error."""
COMMENT_SECONDS = 10.0
"""A stream gets a comment after so long without an event, so that nothing between takes it for dead."""
COMMENT = ": waiting\n\n"
CLIENT_GONE = 499
NOTE_HEADER = "X-PolyLM-Note"


@dataclass(frozen=True)
class ServedModel:
    """The model that is served.

    Attributes:
        names: what requests may call it, the first one is its name.
        queue: runs the requests.
        metrics: are kept up to date.
    """

    names: tuple[str, ...]
    queue: RequestQueue
    metrics: Metrics

    def check_name(self, name: str) -> None:
        """Raise UnknownModelError for another model."""
        if name not in self.names:
            raise UnknownModelError(
                f"The model {name!r:.200} is not served here: this server has {self.names[0]!r}.", "model"
            )

    async def answer(
        self,
        http: Request,
        request: Any,
        read: Callable[[Any], ParsedRequest],
        new_format: Callable[[str, Any, RequestState], Format],
    ) -> Response:
        """Answer a request with a response or a stream."""
        self.check_name(request.model)
        state = self.queue.submit(await asyncio.to_thread(read, request))
        set_figures(http.scope, functools.partial(_figures, state))
        self.metrics.prompt_tokens.inc(state.request.prompt_tokens)
        try:
            response = await self._response(http, request, state, new_format(self.names[0], request, state))
        except BaseException:
            self.queue.leave(state)
            raise
        if (note := note_of(request)) is not None:
            response.headers[NOTE_HEADER] = note
        return response

    async def _response(self, http: Request, request: Any, state: RequestState, format: Format) -> Response:
        if request.stream:
            is_there = await unless_gone(http, state.until_started(), HEADERS_SECONDS)
        else:
            is_there = await unless_gone(http, state.until_complete())
        if not is_there:
            self.queue.leave(state)
            return Response(status_code=CLIENT_GONE)
        if not request.stream:
            return Response(format.whole(state).model_dump_json(), media_type="application/json")
        return EventStream(_events(state, format, request.stream_options), lambda: self.queue.leave(state))


class EventStream(StreamingResponse):
    """Server-sent events, with comments in long pauses.

    Args:
        events: the texts of the events.
        on_end: called when the stream is over, because all is sent or because the client went away.
    """

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._on_end = on_end
        self._last_sent = time.monotonic()
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""

        async def send_noting(message: Message) -> None:
            self._is_sending = True
            await send(message)
            self._is_sending, self._last_sent = False, time.monotonic()

        comments = asyncio.create_task(self._comment(send_noting))
        try:
            await super().__call__(scope, receive, send_noting)
        finally:
            comments.cancel()
            self._on_end()

    async def _comment(self, send: Send) -> None:
        """Send a comment whenever nothing else was sent for some time; never while an event waits for its reader."""
        while True:
            pause = self._last_sent + COMMENT_SECONDS - time.monotonic()
            if pause > 0 or self._is_sending:
                await asyncio.sleep(max(pause, COMMENT_SECONDS / 10))
            else:
                await send({"type": "http.response.body", "body": COMMENT.encode(), "more_body": True})


def _figures(state: RequestState) -> Figures:
    first = None if state.first_text is None else state.first_text - state.arrived
    return Figures(state.request.prompt_tokens, state.generated, first)


async def _events(state: RequestState, format: Format, options: Any) -> AsyncIterator[str]:
    wants_counts = options is not None and options.include_usage
    counts_always = wants_counts and options.continuous_usage_stats
    try:
        async for chunk in _chunks(state, format):
            if counts_always:
                chunk.usage = usage_of(state)
            yield _event(chunk)
    except Exception as error:
        if not isinstance(error, (PolyLMError, RequestError)):
            logger.error("A stream failed.", exc_info=error)
        yield f"data: {json.dumps(refusal_of(error).body)}\n\n"
        return
    if wants_counts:
        yield _event(format.usage(state))
    yield "data: [DONE]\n\n"


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


async def _chunks(state: RequestState, format: Format) -> AsyncIterator[Any]:
    """What is new of each choice whenever something is; a slow reader gets larger chunks."""
    sent, ended = [0] * len(state.choices), [False] * len(state.choices)
    for index in range(len(state.choices)):
        if (opening := format.opening(index)) is not None:
            yield opening
    while True:
        for index, choice in enumerate(state.choices):
            if len(choice.text) > sent[index]:
                text, sent[index] = choice.text[sent[index] :], len(choice.text)
                yield format.piece(index, text)
            if choice.finish_reason is not None and not ended[index]:
                ended[index] = True
                yield format.end(index, choice)
        if all(ended):
            return
        await state.changed()


async def unless_gone(http: Request, waiting: Coroutine[Any, Any, None], seconds: float | None = None) -> bool:
    """Wait, so many seconds at most; False if the client goes away before."""
    result, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({result, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            result.result()
        return result.done() or not gone.done()
    finally:
        result.cancel()
        gone.cancel()


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
