"""ASGI middleware: bodies within bounds, and no web page of another host."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelscope_polylm.http.errors import error_response

BODY_SECONDS = 30.0
"""A body has to be complete within this time."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY_ORIGIN = "*"
JSON_TYPE = re.compile(rb"application/([\w.-]+\+)?json", re.IGNORECASE)


class BodyMiddleware:
    """Takes bodies of JSON alone, that are neither too large nor too slow.

    Browsers ask a server before they send JSON to it from another host's page, and anything else they just send.

    Args:
        app: the application.
        max_bytes: bytes that a body may have.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip()
        if scope["method"] == "POST" and not JSON_TYPE.fullmatch(kind):
            message = "The body has to be JSON: send the header Content-Type: application/json."
            await _refuse(415, message, None, scope, receive, send)
        elif int(headers.get(b"content-length", b"0")) > self._max_bytes:
            await _refuse(413, _too_large(self._max_bytes), None, scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, _Body(receive, self._max_bytes), send_noting)
        except _BodyError as error:  # of an application without an answer of its own
            if not has_begun:
                await _refuse(error.status_code, error.detail, None, scope, receive, send)


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
        with anyio.move_on_after(self._deadline - time.monotonic()) as scope:
            message = await self._receive()
        if scope.cancelled_caught:
            raise _BodyError(408, f"The request did not come within {BODY_SECONDS:.0f} seconds.")
        self._size += len(message.get("body", b""))
        if self._size > self._max_bytes:
            raise _BodyError(413, _too_large(self._max_bytes))
        self._is_complete = not message.get("more_body", False)
        return message


def _too_large(max_bytes: int) -> str:
    return f"The request is larger than {max_bytes:,} bytes: send less text."


class HostMiddleware:
    """Answers requests to this machine's own names, and from pages that it served itself.

    A web page can have its host's name resolve to this machine and ask it in the browser's name; the header Host tells.
    A page of another host is told by the header Origin.

    Args:
        app: the application.
        origins: those that are let in as well, such as 'https://example.org'; '*' is any.
        hint: what a user can do who meant it.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = (), hint: str = "") -> None:
        self._app, self._hint = app, hint
        self._origins = {origin.lower() for origin in origins}
        self._names = {*LOOPBACK_NAMES, *(origin.partition("://")[2] for origin in self._origins - {ANY_ORIGIN})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        headers = dict(scope.get("headers", ()))
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if scope["type"] == "lifespan" or (self._is_own(host) and self._is_allowed(origin, host)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            code = "foreign_origin" if self._is_own(host) else "foreign_host"
            asked = f"This server answers to localhost alone, not to {host!r:.100}"
            message = asked if code == "foreign_host" else f"Pages of {origin!r:.100} may not use this server"
            await _refuse(403, f"{message}. {self._hint}".rstrip(), code, scope, receive, send)

    def _is_own(self, host: str) -> bool:
        return host in self._names or re.sub(r":\d*$", "", host) in self._names

    def _is_allowed(self, origin: str, host: str) -> bool:
        own = ("", f"http://{host}", f"https://{host}")
        return origin in own or origin in self._origins or ANY_ORIGIN in self._origins


async def _refuse(status: int, message: str, code: str | None, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(status, message, code=code, headers={"Connection": "close"})
    await response(scope, receive, send)
