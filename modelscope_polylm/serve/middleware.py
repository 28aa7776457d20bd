"""Before and around the application: who may ask, how much may be sent and how slowly; counts every request."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelscope_polylm.serve.errors import RequestError, WrongKeyError, failure_of
from modelscope_polylm.serve.metrics import Metrics

OPEN_PATHS = ("/health", "/openapi.json")
"""What anybody may read: they tell nothing about the model's use."""
KNOWN_PATHS = (*OPEN_PATHS, "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")
BODY_SECONDS = 30.0
"""A body has to be complete within this time."""
SEND_SECONDS = 60.0
"""A client has to read what is sent within this time."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class ForeignHostError(RequestError):
    """A request to another host's name, such as a web page sends that has its name resolve to this machine."""

    status, code = 403, "foreign_host"


class Gate:
    """An ASGI middleware.

    Args:
        app: what is behind it.
        metrics: counts requests and their times.
        api_key: what a client has to show; None lets every client of this machine in.
        largest_body: bytes that a request may send.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, api_key: str | None, largest_body: int) -> None:
        self._app, self._metrics, self._largest_body = app, metrics, largest_body
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def send_in_time(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            with anyio.fail_after(SEND_SECONDS):
                await send(message)

        try:
            await self._serve(scope, _Body(receive, self._largest_body), send_in_time)
        finally:
            path = next((path for path in KNOWN_PATHS[::-1] if scope["path"].startswith(path)), "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.monotonic() - start)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            self._check(scope["path"], headers)
            _check_length(headers, self._largest_body)
        except (RequestError, HTTPException) as error:
            await _refuse(error, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._authorization is None:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            if host.rpartition(":")[0].lower() not in LOOPBACK_HOSTS and host.lower() not in LOOPBACK_HOSTS:
                raise ForeignHostError(
                    "Without an API key this server answers to localhost alone: start it with --api-key."
                )
        elif path not in OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = scheme.capitalize() + b" " + key.strip()
            if not hmac.compare_digest(given, self._authorization):
                raise WrongKeyError("The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.")


def too_large(largest: int) -> HTTPException:
    """The refusal of a body."""
    return HTTPException(413, f"The request is larger than {largest:,} bytes: send less text.")


def _check_length(headers: dict[bytes, bytes], largest: int) -> None:
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > largest:
        raise too_large(largest)


class _Body:
    """Receives a request's body, which may neither be too large nor come too slowly."""

    def __init__(self, receive: Receive, largest: int) -> None:
        self._receive, self._largest = receive, largest
        self._size, self._is_complete = 0, False
        self._deadline = time.monotonic() + BODY_SECONDS

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        with anyio.move_on_after(self._deadline - time.monotonic()) as patience:
            message = await self._receive()
        if patience.cancelled_caught:
            raise HTTPException(408, f"The request did not come within {BODY_SECONDS:.0f} seconds.")
        self._size += len(message.get("body", b""))
        if self._size > self._largest:
            raise too_large(self._largest)
        self._is_complete = not message.get("more_body", False)
        return message


async def _refuse(error: RequestError | HTTPException, send: Callable[[Message], Awaitable[Any]]) -> None:
    refusal = failure_of(error)
    body = json.dumps(refusal.body).encode()
    own = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    headers = [(name.lower().encode(), value.encode()) for name, value in {**own, **refusal.headers}.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
