"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from modelscope_polylm.generation.engine import EngineStatus

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)


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
