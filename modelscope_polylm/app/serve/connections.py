"""uvicorn's server, with limits for connections that it lacks and an end that finishes what runs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from modelscope_polylm.app.serve.failures import failure

HEADER_SECONDS = 10.0
"""A connection that has not sent a request's head within this time is closed; uvicorn would wait forever."""
MOST_CONNECTIONS = 1000
"""Further ones are closed at once: each takes a file descriptor."""


class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP, but a client that sends its head byte by byte does not keep a connection."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._watch_header()

    def data_received(self, data: bytes) -> None:
        """Wait on if the request's head is not complete."""
        super().data_received(data)
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._unwatch_header()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in OpenAI's form."""
        body = json.dumps(failure(400, msg).body).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head.encode() + body)
        self.transport.close()

    def _watch_header(self) -> None:
        if not self._lacks_header():
            self._unwatch_header()
        elif self._header_timer is None:
            self._header_timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._close_without_header)

    def _unwatch_header(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _lacks_header(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_without_header(self) -> None:
        if self._lacks_header():
            self.transport.close()


class Server(uvicorn.Server):
    """Ends in order: what runs is finished, what waits is refused.

    Args:
        config: uvicorn's.
        on_ready: called when the server takes requests.
        on_end: called when it is asked to end, and takes no more connections.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready, self._on_end = on_ready, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for what runs."""
        self._on_end()
        await super().shutdown(sockets)
