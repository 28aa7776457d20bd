"""The server on this package's own engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

from modelscope_polylm.app.serve.answering import Service
from modelscope_polylm.app.serve.application import application
from modelscope_polylm.app.serve.connections import LimitedProtocol, Server
from modelscope_polylm.app.serve.metrics import Metrics
from modelscope_polylm.app.serve.reading import RequestReader
from modelscope_polylm.app.serve.responses import ModelCard
from modelscope_polylm.app.serve.scheduler import Scheduler

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
        card = ModelCard(id=names[0], created=int(time.time()), max_model_len=generator.snapshot.config.positions)
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
