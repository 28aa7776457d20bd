"""ASGI middleware of the server: who may ask, and a record of every request, in the log and for Prometheus."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelscope_polylm.serve.errors import WrongKeyError, refusal_of

if TYPE_CHECKING:
    from modelscope_polylm.generation.engine import EngineStatus

logger = logging.getLogger(__name__)

METRICS_PATH = "/metrics"
OPEN_PATHS = ("/health", "/version", "/openapi.json")
"""What anybody may read: they tell nothing about the model's use."""
TRANSLATE_PATH, LANGUAGES_PATH = "/v2/translate", "/v2/languages"
KNOWN_PATHS = (
    *OPEN_PATHS,
    METRICS_PATH,
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    TRANSLATE_PATH,
    LANGUAGES_PATH,
)
KEY_SCHEMES = (b"bearer", b"deepl-auth-key")
PROBED_PATHS = ("/health", METRICS_PATH)
"""What other programs read every few seconds."""
REQUEST_ID = re.compile(rb"[\w.-]{1,100}")
"""Names of requests that are taken from their clients."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
"""Bounds of the histograms' buckets."""


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        keys: API keys, one of which a client has to show; none lets in every client of this machine.
        metrics_key: what /metrics takes as well.
        open_metrics: whether /metrics asks for no key.
        origins: origins whose web pages may ask, such as 'https://example.org'; '*' is any.
    """

    keys: tuple[str, ...] = ()
    metrics_key: str | None = None
    open_metrics: bool = False
    origins: tuple[str, ...] = ()


class KeyMiddleware:
    """Asks for a key.

    Args:
        app: the application.
        access: the keys.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        keys = {"": access.keys, METRICS_PATH: access.keys}
        if access.metrics_key is not None:
            keys[METRICS_PATH] = (*access.keys, access.metrics_key)
        if access.open_metrics:
            keys[METRICS_PATH] = ()
        self._credentials = {path: [f"Bearer {key}".encode() for key in each] for path, each in keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or self._may_ask(scope["path"], dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        error = WrongKeyError("The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.")
        await refusal_of(error).response_for(scope["path"])(scope, receive, send)

    def _may_ask(self, path: str, headers: dict[bytes, bytes]) -> bool:
        credentials = self._credentials.get(path, self._credentials[""])
        if path in OPEN_PATHS or not credentials:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        scheme = b"Bearer" if scheme.lower() in KEY_SCHEMES else scheme
        given = scheme + b" " + key.strip()
        return any(hmac.compare_digest(given, each) for each in credentials)


@dataclass(frozen=True)
class Figures:
    """What the record of a request tells of its answer.

    Attributes:
        prompt_tokens, completion_tokens: counts.
        first_token_seconds: from the request to its first text; None if there was none.
    """

    prompt_tokens: int
    completion_tokens: int
    first_token_seconds: float | None


def set_figures(scope: Scope, read: Callable[[], Figures]) -> None:
    """Have the record of a request tell these figures, read at its end."""
    scope["state"]["figures"] = read


class RequestLog:
    """Gives each request a name, counts it, and writes a line about it, without contents and keys.

    Args:
        app: the application.
        metrics: counts requests and their times.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, name = time.monotonic(), 500, _request_id(scope)
        scope.setdefault("state", {})

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            seconds = time.monotonic() - start
            path = next((path for path in KNOWN_PATHS[::-1] if scope["path"].startswith(path)), "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(seconds)
            _write_line(scope, status, seconds, name.decode())


def _request_id(scope: Scope) -> bytes:
    given: bytes = dict(scope["headers"]).get(b"x-request-id", b"")
    return given if REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()


def _write_line(scope: Scope, status: int, seconds: float, name: str) -> None:
    level = logging.DEBUG if scope["path"] in PROBED_PATHS else logging.INFO
    if not logger.isEnabledFor(level):
        return
    method, path = scope["method"], scope.get("raw_path", b"").decode("latin-1")[:200]
    fields: dict[str, Any] = {
        "request_id": name,
        "client": (scope.get("client") or ("",))[0],
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(seconds, 4),
    }
    text = f"{method} {path} {status} in {seconds:.3f} s"
    if read := scope["state"].get("figures"):
        figures: Figures = read()
        first = figures.first_token_seconds
        fields.update(vars(figures), first_token_seconds=None if first is None else round(first, 4))
        text += f", {figures.prompt_tokens} + {figures.completion_tokens} tokens"
        text += "" if first is None else f", the first after {first:.3f} s"
    logger.log(level, "%s, %s", text, name, extra={"fields": fields})


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "polylm_requests",
            "Requests by path and status of the response.",
            ("path", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "polylm_request_seconds", "From a request to the end of its response.", ("path",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("polylm_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.generated_tokens = Counter("polylm_generated_tokens", "Tokens generated.", registry=self.registry)
        self.cancelled = Counter(
            "polylm_cancelled_requests", "Requests whose client went away before the end.", registry=self.registry
        )
        self.queue_seconds = self._histogram("polylm_queue_seconds", "From a request to its start in the engine.")
        self.first_text_seconds = self._histogram("polylm_first_text_seconds", "From a request to its first text.")
        self.between_texts_seconds = self._histogram("polylm_between_texts_seconds", "From one text to the next one.")

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, buckets=SECONDS, registry=self.registry)

    def watch(self, status: Callable[[], EngineStatus], waiting: Callable[[], int], rows: Callable[[], int]) -> None:
        """Read the state of the engine and of the requests whenever the metrics are read."""
        for name, help, value in (
            ("polylm_waiting_requests", "Requests that wait for others to end.", waiting),
            ("polylm_running_rows", "Rows being computed whose clients still wait.", rows),
            ("polylm_cache_tokens", "Tokens that the KV cache has room for.", lambda: status().cache_tokens),
            ("polylm_used_cache_tokens", "Tokens of it in use.", lambda: status().used_cache_tokens),
        ):
            Gauge(name, help, registry=self.registry).set_function(value)
        self.registry.register(_EngineCounters(status))

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCounters(Collector):
    """What the engine itself counts."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counters' present values."""
        status = self._status()
        for name, help, value in (
            ("polylm_put_backs", "How often a request lost its cache to another one.", status.put_backs),
            ("polylm_reused_tokens", "Prompt tokens that were found in the cache.", status.reused_tokens),
        ):
            yield CounterMetricFamily(name, help, value)
