"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


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
        self.queue_seconds = self._histogram("polylm_queue_seconds", "From a request to the start of its batch.")
        self.first_text_seconds = self._histogram("polylm_first_text_seconds", "From a request to its first text.")
        self.batch_rows = Histogram("polylm_batch_rows", "Rows of a batch.", buckets=ROWS, registry=self.registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, buckets=SECONDS, registry=self.registry)

    def watch(self, waiting: Callable[[], int], rows: Callable[[], int], batches: Callable[[], int]) -> None:
        """Read the state of a scheduler whenever the metrics are read."""
        for name, help, value in (
            ("polylm_waiting_requests", "Requests in the queue.", waiting),
            ("polylm_running_rows", "Rows being computed whose clients still wait.", rows),
            ("polylm_running_batches", "Batches being computed.", batches),
        ):
            Gauge(name, help, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
