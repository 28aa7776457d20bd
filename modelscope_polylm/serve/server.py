"""The server on this package's own engine."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from modelscope_polylm.serve.application import application
from modelscope_polylm.serve.errors import failure
from modelscope_polylm.serve.metrics import Metrics
from modelscope_polylm.serve.parsing import RequestReader
from modelscope_polylm.serve.responses import ModelCard
from modelscope_polylm.serve.routes import Service
from modelscope_polylm.serve.scheduler import Scheduler

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        rows: answers and beams that are computed at once.
        batches: batches that run side by side.
        queue: requests that may wait.
        body: bytes of a request.
        ending_seconds: how long running requests may take to end when the server ends.
    """

    rows: int = 32
    batches: int = 4
    queue: int = 64
    body: int = 1_000_000
    ending_seconds: int = 120


class NativeServer:
    """Serves one model until it is told to end.

    Args:
        generator: the loaded model.
        names: what requests may call it; the first one is its name.
        api_key: what clients have to show; None lets every client of this machine in.
        limits: what it takes on.
        defaults: generation options that win over the model's own, where a request has none.

    Raises:
        OptionError: `defaults` contradict each other.
    """

    def __init__(
        self,
        generator: TextGenerator,
        names: tuple[str, ...],
        api_key: str | None = None,
        limits: Limits | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        limits = limits or Limits()
        self.metrics = metrics = Metrics()
        self.scheduler = Scheduler(generator, metrics, limits.rows, limits.batches, limits.queue)
        reader = RequestReader(generator, defaults or {}, limits.rows)
        card = ModelCard(id=names[0], created=int(time.time()), max_model_len=generator.snapshot.config.max_positions)
        self.app = application(Service(names, self.scheduler, metrics), reader, card, api_key, limits.body)
        self._limits = limits

    def run(self, host: str, port: int, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGINT or SIGTERM; then finish what runs, and refuse what waits."""
        self.server(host, port, on_ready).run()
        self.scheduler.stop()

    def server(self, host: str, port: int, on_ready: Callable[[], None] = lambda: None) -> Server:
        """A uvicorn server for one run."""
        config = uvicorn.Config(
            self.app,
            host=host,
            port=port,
            http=LimitedProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=self._limits.ending_seconds,
        )
        return Server(config, on_ready, self.scheduler.end)


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
