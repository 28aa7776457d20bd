"""The HTTP/1.1 server: how much a client may send, how long it may take, and an end in order.

A connection is uvicorn's protocol on h11: a parser that is installed wherever uvicorn is, ignores upgrades that nobody
offers, and keeps the trailers of a body apart from the headers. At the end what runs is finished, and clients that do
not read are not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from modelscope_polylm.http.middleware import error_body

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
SMALL_CHUNK, MAX_SMALL_CHUNKS = 64, 10_000
"""A body may have so many chunks of fewer bytes: each takes time to parse."""
MAX_CONNECTIONS = 1000
"""Further ones are closed at once, as each takes a file descriptor."""
HEAD_SECONDS = 10.0
"""A request's head has to be complete within this time."""
SEND_SECONDS = 60.0
"""A client has to read what it is sent within this time."""
END_SEND_SECONDS = 10.0
"""The same, once the server is about to end."""
LINGER_SECONDS = 2.0
"""A refused client may go on sending for this time; nothing is read, but the refusal reaches it."""
PROBE_SECONDS = (0.05, 0.2, 1.0)
"""Pauses between the probes of a connection whose client has ended its side."""
KEEP_ALIVE_SECONDS = 30

VERSIONS = (b"1.0", b"1.1")
ONCE = (b"host", b"authorization", b"content-type", b"origin")
"""Headers whose second value would override the first for some readers and not for others."""
MALFORMED_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
"""A line that ends without a carriage return or continues the one before: readers disagree about where it ends."""


class RefusedRequest(h11.RemoteProtocolError):
    """A request that is valid for h11 and refused here; `error_status_hint` is the status of the refusal."""


class HttpParser(h11.Connection):
    """h11's parser with bounds on a request, which hold before a head's lines are parsed."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._small_chunks = 0

    def next_event(self) -> Any:
        """The next event, as h11 tells it. Raises RemoteProtocolError, for what is refused here RefusedRequest."""
        if self.their_state is h11.IDLE:
            _check_head(self.trailing_data[0].partition(b"\r\n\r\n")[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._small_chunks = 0
            _check_request(event)
        elif isinstance(event, h11.Data) and event.chunk_start and len(event.data) < SMALL_CHUNK:
            self._small_chunks += 1
            if self._small_chunks > MAX_SMALL_CHUNKS:
                raise RefusedRequest("The body comes in too many small chunks: send larger ones.", 413)
        return event


def _check_head(head: bytes) -> None:
    if len(head) > MAX_HEAD_BYTES or head.count(b"\n") > MAX_HEADERS:
        message = f"A request may have {MAX_HEADERS} headers, which take {MAX_HEAD_BYTES:,} bytes together."
        raise RefusedRequest(message, 431)
    if MALFORMED_LINE.search(head):
        raise RefusedRequest("A line of the request's head does not end as HTTP asks for.")


def _check_request(request: h11.Request) -> None:
    if request.http_version not in VERSIONS:
        raise RefusedRequest("This server speaks HTTP/1.1.", 505)
    counts = Counter(name for name, _ in request.headers)
    for name in ONCE:
        if counts[name] > 1:
            raise RefusedRequest(f"The request has {counts[name]} headers {name.decode()!r}: send one.")
    if counts[b"content-length"] and counts[b"transfer-encoding"]:
        raise RefusedRequest("The request tells its length twice: leave Content-Length out.")


class Connection(H11Protocol):  # type: ignore[misc]
    """A client's connection, bounded in what it holds and in time."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.conn = HttpParser()
        self._application, self.app = self.app, self._serve
        self._is_refused = self._sends_events = False
        self._send_seconds = SEND_SECONDS
        self._head_timer = _Timer(self._close_without_head)
        self._send_timer = _Timer(self._abort_unread)
        self._probe_timer = _Timer(self._probe)
        self._pauses: list[float] = []

    def connection_made(self, transport: Any) -> None:
        """Wait for a request's head."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._head_timer.start(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; a head that is not complete has to be so in time."""
        if self._is_refused:
            return
        if not self.flow.write_paused:
            self._send_timer.stop()  # who asks again has read the last answer
        super().data_received(data)
        if not self._lacks_head():
            self._head_timer.stop()
        elif not self._is_refused:
            self._head_timer.start(HEAD_SECONDS)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has ended its side after a whole request; close any other connection.

        A client that is gone looks the same until something is sent to it. So it is probed, and its request is given up
        as soon as its system says that nobody is there.
        """
        cycle = self.cycle
        if self._is_refused or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False
        self._pauses = list(PROBE_SECONDS)
        self._probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._send_timer, self._probe_timer):
            timer.stop()

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        self._send_timer.start(self._send_seconds)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        self._send_timer.stop()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to read what is left of the answer."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._send_timer.start(self._send_seconds)

    def shutdown(self) -> None:
        """Let a running request end, and wait less for clients that do not read."""
        super().shutdown()
        self._send_seconds = END_SEND_SECONDS
        if self.flow.write_paused or self.transport.is_closing():
            self._send_timer.stop()
            self._send_timer.start(END_SEND_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be read, with the status and the words of the error being handled."""
        error, cycle = sys.exc_info()[1], self.cycle
        status = HTTPStatus(getattr(error, "error_status_hint", HTTPStatus.BAD_REQUEST))
        message = str(error) if isinstance(error, RefusedRequest) else "The request is not valid HTTP."
        self._is_refused = True
        self._head_timer.stop()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        self._refuse(status, message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        body = json.dumps(error_body(status, message)).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.abort)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and note whether it answers with events, between which a probe may stand."""

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
                self._sends_events = any(kind.startswith(b"text/event-stream") for kind in kinds)
            await send(message)

        cycle = self.cycle
        try:
            await self._application(scope, receive, send_noting)
        except asyncio.CancelledError:  # the server ends, and its time for answers is over
            cycle.disconnected = True
            self.transport.close()

    def _lacks_head(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _close_without_head(self) -> None:
        if self._lacks_head():
            self.transport.close()

    def _abort_unread(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _probe(self) -> None:
        """Send what changes nothing in the answer; a system whose program is gone replies with a reset."""
        if self.transport.is_closing() or self.cycle.response_complete or self.scope["http_version"] != "1.1":
            return
        if not self.cycle.response_started:
            event = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(event))
        elif self._sends_events:
            self.transport.write(self.conn.send(h11.Data(data=b":\n\n")))
        if self._pauses:
            self._probe_timer.start(self._pauses.pop(0))


class _Timer:
    """Calls an action once after a time, unless it is stopped before."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Start, unless it runs already."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(seconds, self._run)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _run(self) -> None:
        self._handle = None
        self._action()


class Server(uvicorn.Server):  # type: ignore[misc]
    """Serves an application until SIGINT, SIGTERM or SIGHUP.

    Args:
        app: the ASGI application.
        host, port: where to listen.
        end_seconds: how long running requests may take to end.
        on_ready: called when the server takes requests.
        on_end: called when it is asked to end, and takes no more connections.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        end_seconds: int,
        on_ready: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=end_seconds,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_is_not_of_the_end)
        self._on_ready, self._on_end = on_ready, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for what runs."""
        logger.info("Ending: running requests may take %s more seconds.", self.config.timeout_graceful_shutdown)
        self._on_end()
        await super().shutdown(sockets)
        logger.info("Ended.")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at a hang-up as at SIGTERM, unless the process was started to ignore it, as by nohup."""
        hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
        is_main = threading.current_thread() is threading.main_thread()
        with super().capture_signals():
            if hang_up is None or not is_main or signal.getsignal(hang_up) is signal.SIG_IGN:
                yield
                return
            before = signal.signal(hang_up, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(hang_up, before)


def url_of(host: str, port: int) -> str:
    """The address of a server for a browser; numbers of IPv6 stand in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_not_of_the_end(record: logging.LogRecord) -> bool:
    """Whether a record is other than uvicorn's error about streams that are open at the end, as pages have them."""
    return not str(record.msg).startswith("Cancel %s running task")
