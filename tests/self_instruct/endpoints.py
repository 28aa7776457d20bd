"""An endpoint whose answers are recorded: small models cannot write tasks."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | tuple[int, str]
"""The text of an answer, or the status and body of a response that is none."""


@dataclass
class Recorded:
    """A running endpoint, and what it was sent."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]


@contextlib.contextmanager
def recorded(answer: Callable[[str, int], Answer], finish_reason: str = "stop") -> Iterator[Recorded]:
    """Serve `/v1/chat/completions` for the time of a block.

    Args:
        answer: takes a prompt and its number, beginning with 0.
        finish_reason: of all answers.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(endpoint.requests)
                endpoint.requests.append(body)
                endpoint.keys.append(self.headers["Authorization"])
            found = answer(body["messages"][0]["content"], number)
            status, text = found if isinstance(found, tuple) else (200, completion(found, finish_reason))
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/html")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = Recorded(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: str, finish_reason: str) -> str:
    """The body of a response of OpenAI's interface."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


def refusal(message: str) -> str:
    """The body of an error of OpenAI's interface."""
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
