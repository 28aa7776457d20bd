"""The way of a request: read it, queue it, wait or stream, and give its place back whatever happens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import anyio
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.serve.errors import RequestError, UnknownModelError, failure_of
from modelscope_polylm.serve.jobs import Job, Work
from modelscope_polylm.serve.metrics import Metrics
from modelscope_polylm.serve.responses import Format
from modelscope_polylm.serve.scheduler import Scheduler

logger = logging.getLogger(__name__)

PING_SECONDS = 15.0
"""A stream without news gets a comment this often, so that nothing on the way takes it for dead."""
CLIENT_GONE = 499


@dataclass(frozen=True)
class Service:
    """The model that is served.

    Attributes:
        names: what requests may call it, the first one is its name.
    """

    names: tuple[str, ...]
    scheduler: Scheduler
    metrics: Metrics

    def check_model(self, name: str) -> None:
        """Raise UnknownModelError for another model."""
        if name not in self.names:
            raise UnknownModelError(
                f"The model {name!r:.200} is not served here: this server has {self.names[0]!r}.", "model"
            )

    async def answer(
        self,
        http: Request,
        request: Any,
        read: Callable[[Any], Work],
        new_format: Callable[[str, Any, Job], Format],
    ) -> Response:
        """Answer a request with a response or a stream."""
        self.check_model(request.model)
        job = self.scheduler.submit(await asyncio.to_thread(read, request))
        self.metrics.prompt_tokens.inc(job.work.prompt_tokens)
        try:
            waiting = job.until_started() if request.stream else job.until_complete()
            if not await _unless_gone(http, waiting):
                self.scheduler.leave(job)
                return Response(status_code=CLIENT_GONE)
            format = new_format(self.names[0], request, job)
            if not request.stream:
                return Response(format.whole(job).model_dump_json(), media_type="application/json")
            counts = request.stream_options is not None and request.stream_options.include_usage
            return EventStream(_events(job, format, counts), lambda: self.scheduler.leave(job))
        except BaseException:
            self.scheduler.leave(job)
            raise


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: the texts of the events.
        on_end: called when the stream is over, because all is sent or because the client went away.
    """

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _events(job: Job, format: Format, counts: bool) -> AsyncIterator[str]:
    try:
        async for piece in _pieces(job, format):
            yield ": waiting\n\n" if piece is None else f"data: {piece.model_dump_json()}\n\n"
    except Exception as error:
        if not isinstance(error, (PolyLMError, RequestError)):
            logger.error("A stream failed.", exc_info=error)
        yield f"data: {json.dumps(failure_of(error).body)}\n\n"
        return
    if counts:
        yield f"data: {format.usage(job).model_dump_json()}\n\n"
    yield "data: [DONE]\n\n"


async def _pieces(job: Job, format: Format) -> AsyncIterator[BaseModel | None]:
    """What is new of each choice whenever something is; a slow reader gets larger pieces. None: nothing for a while."""
    sent, ended = [0] * len(job.choices), [False] * len(job.choices)
    for index in range(len(job.choices)):
        if (opening := format.opening(index)) is not None:
            yield opening
    while True:
        for index, choice in enumerate(job.choices):
            if len(choice.text) > sent[index]:
                text, sent[index] = choice.text[sent[index] :], len(choice.text)
                yield format.piece(index, text)
            if choice.finish_reason is not None and not ended[index]:
                ended[index] = True
                yield format.end(index, choice)
        if all(ended):
            return
        with anyio.move_on_after(PING_SECONDS) as patience:
            await job.news()
        if patience.cancelled_caught:
            yield None


async def _unless_gone(http: Request, waiting: Coroutine[Any, Any, None]) -> bool:
    """Wait; False if the client goes away before."""
    result, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            return False
        result.result()
        return True
    finally:
        result.cancel()
        gone.cancel()


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
