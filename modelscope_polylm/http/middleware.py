"""What comes before the application: bounds of a body, no web page of another host, refusals in OpenAI's form."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_SECONDS = 30.0
"""A body has to be complete within this time."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY_ORIGIN = "*"
JSON_TYPE = re.compile(rb"application/([\w.-]+\+)?json", re.IGNORECASE)
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of a refusal: `{"error": {"message", "type", "param", "code"}}`.

    Args:
        status: the HTTP status, which decides the type.
        message: what was wrong, and what to do.
        param: the field of the request that it is about.
        code: OpenAI's name for the problem, where it has one.
    """
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A refusal as a response; the arguments are those of `error_body`, and further headers."""
    return JSONResponse(error_body(status, message, param, code), status, dict(headers or {}))


class BodyMiddleware:
    """Takes only bodies of JSON that are neither too large nor too slow.

    A browser asks a server before it sends JSON from another host's page to it; anything else it just sends.

    Args:
        app: the application.
        max_bytes: bytes that a body may have.
        others: paths that take another type besides JSON; who serves them has to ask for a key or for the origin.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, others: Mapping[str, str] | None = None) -> None:
        self._app, self._max_bytes, self._others = app, max_bytes, others or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip()
        is_other = kind.decode("latin-1").lower() == self._others.get(scope["path"])
        if scope["method"] == "POST" and not JSON_TYPE.fullmatch(kind) and not is_other:
            return error_response(415, "The body has to be JSON: send the header Content-Type: application/json.")
        if int(headers.get(b"content-length", b"0")) > self._max_bytes:
            return error_response(413, _too_large(self._max_bytes))
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, _Body(receive, self._max_bytes), send_noting)
        except _BodyError as error:  # the application has no answer of its own to it
            if not has_begun:
                await error_response(error.status_code, error.detail, headers=error.headers)(scope, receive, send)


class _BodyError(HTTPException):
    """A body that is too large or too late."""


class _Body:
    """Receives a body; raises _BodyError as soon as it is too large or too late."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._size, self._is_complete = 0, False
        self._deadline = time.monotonic() + BODY_SECONDS

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        with anyio.move_on_after(self._deadline - time.monotonic()) as timeout:
            message = await self._receive()
        if timeout.cancelled_caught:
            detail = f"The request did not come within {BODY_SECONDS:.0f} seconds."
            raise _BodyError(408, detail, {"Connection": "close"})
        self._size += len(message.get("body", b""))
        if self._size > self._max_bytes:
            raise _BodyError(413, _too_large(self._max_bytes))
        self._is_complete = not message.get("more_body", False)
        return message


def _too_large(max_bytes: int) -> str:
    return f"The request is larger than {max_bytes:,} bytes: send less text."


class HostMiddleware:
    """Answers only to this machine's own names, and to pages that come from them.

    A web page can let its host's name resolve to this machine, and then ask it as a page of that host; the header Host
    tells. A page of any other host is told by the header Origin.

    Args:
        app: the application.
        origins: those that are let in as well, such as 'https://example.org'; '*' is any.
        hint: what to do where the request was meant.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = (), hint: str = "") -> None:
        self._app, self._hint = app, hint
        self._origins = {origin.lower() for origin in origins}
        self._names = {*LOOPBACK_NAMES, *(origin.partition("://")[2] for origin in self._origins - {ANY_ORIGIN})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(dict(scope["headers"]))
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> Response | None:
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if host not in self._names and re.sub(r":\d*$", "", host) not in self._names:
            message = f"This server answers only to localhost, not to {host!r:.100}. {self._hint}"
            return error_response(403, message.strip(), code="foreign_host")
        if origin not in ("", f"http://{host}", f"https://{host}", *self._origins) and ANY_ORIGIN not in self._origins:
            message = f"Pages of {origin!r:.100} may not use this server. {self._hint}"
            return error_response(403, message.strip(), code="foreign_origin")
        return None
