"""The server on this package's own engine."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.http.server import Server, url_of
from modelscope_polylm.serve.application import ROOT, application
from modelscope_polylm.serve.metrics import Metrics
from modelscope_polylm.serve.middleware import Access
from modelscope_polylm.serve.parsing import RequestReader
from modelscope_polylm.serve.queue import RequestQueue
from modelscope_polylm.serve.responses import ModelCard
from modelscope_polylm.serve.routes import ServedModel

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        rows: answers and beams that are computed at once.
        queue: requests that may wait.
        body: bytes of a request.
        ending_seconds: how long running requests may take to end when the server ends.
    """

    rows: int = 32
    queue: int = 64
    body: int = 1_000_000
    ending_seconds: int = 120


class NativeServer:
    """Serves one model until it is told to end.

    Args:
        generator: the loaded model.
        names: what requests may call it; the first one is its name.
        access: who may use it; every client of this machine by default.
        limits: what it takes on.
        defaults: generation options that win over the model's own, where a request has none.
        system_message: what becomes of system messages: 'prepend' or 'refuse'.

    Raises:
        OptionError: `defaults` contradict each other.
    """

    def __init__(
        self,
        generator: TextGenerator,
        names: tuple[str, ...],
        access: Access | None = None,
        limits: Limits | None = None,
        defaults: Mapping[str, Any] | None = None,
        system_message: str = "prepend",
    ) -> None:
        self._name = names[0]
        self._limits = limits = limits or Limits()
        self.metrics = metrics = Metrics()
        self.queue = RequestQueue(generator, metrics, limits.rows, limits.queue)
        reader = RequestReader(generator, defaults or {}, limits.rows, system_message)
        card = ModelCard(id=names[0], created=int(time.time()), max_model_len=generator.snapshot.config.max_positions)
        model = ServedModel(names, self.queue, metrics)
        self.app = application(model, reader, card, access or Access(), limits.body)

    def run(self, host: str, port: int) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP; then finish what runs, and refuse what waits."""
        gc.freeze()  # a large body of small lists would have the collector look at all of torch again and again
        url = url_of(host, port) + ROOT
        self.server(host, port, lambda: logger.info("Serving %s at %s; Ctrl-C ends.", self._name, url)).run()
        self.queue.stop()

    def server(self, host: str, port: int, on_ready: Callable[[], None] = lambda: None) -> Server:
        """A uvicorn server for one run."""
        return Server(self.app, host, port, self._limits.ending_seconds, on_ready, self.queue.end)
