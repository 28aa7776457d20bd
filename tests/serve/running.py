"""The real server in this process, on a port of its own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.http.server import Server
from modelscope_polylm.serve.middleware import Access
from modelscope_polylm.serve.server import Limits, NativeServer
from tests.http.running import listening

QUESTION = "Rome is the capital of Italy.\nTranslate this sentence from English to German."
ANSWER = "Rom ist die Hauptstadt von Italien."
PROMPT = f"<|user|>\n{QUESTION}\n<|assistant|>\n"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG = {"num_beams": 1, "min_new_tokens": 400, "max_tokens": 400}
"""Options of an answer that takes a while."""


@dataclass
class Running:
    """A server that runs."""

    port: int
    native: NativeServer
    server: Server
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **settings: Any) -> httpx.Response:
        return self.http.post(path, json=body, **settings)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def is_idle(self) -> bool:
        gauges = ("polylm_waiting_requests", "polylm_running_rows", "polylm_used_cache_tokens")
        return not any(map(self.metric, gauges))

    def end(self) -> None:
        """Ask it to end, as a signal does."""
        self.server.should_exit = True


@contextlib.contextmanager
def serving(
    generator: TextGenerator,
    access: Access | None = None,
    defaults: dict[str, Any] | None = None,
    system_message: str = "prepend",
    **limits: int,
) -> Iterator[Running]:
    """A server for the time of a block."""
    native = NativeServer(generator, ("tiny", "polylm-tiny"), access, Limits(**limits), defaults, system_message)
    server = native.server("127.0.0.1", 0)
    try:
        with listening(server) as port:
            url, unlimited = f"http://127.0.0.1:{port}", httpx.Limits(max_connections=None)
            with httpx.Client(base_url=url, timeout=120, limits=unlimited) as client:
                yield Running(port, native, server, client)
    finally:
        native.queue.stop()


def chat(**more: Any) -> dict[str, Any]:
    """A request that tiny knows the answer to."""
    return {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], **more}


def completion(**more: Any) -> dict[str, Any]:
    """The same as a text."""
    return {"model": "tiny", "prompt": PROMPT, **more}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a refusal, which has to be in OpenAI's form."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert body["error"]["message"]
    return dict(body["error"])
