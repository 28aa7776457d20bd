"""ASGI middleware around gradio: the page's routes alone, calls of the right form, no work that nobody waits for."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from modelscope_polylm.web.words import LANGUAGES, preferred_language

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

JOIN, PREDICT, LISTEN = "/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/queue/data"
IN_LANGUAGE = re.compile(rf"/({'|'.join(LANGUAGES)})(/.*)")
"""A path on the page of a language."""
REDIRECTED = ("/", "/favicon.ico", *(f"/{language}" for language in LANGUAGES))
"""Paths that lead to the page of a language."""
ALLOWED = {
    "GET": r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|app_id|startup-events|queue/data|heartbeat/\w+)",
    "POST": r"/gradio_api/(queue/join|run/predict|cancel|reset)",
}
"""What a page needs of gradio's routes, by method. Its routes for files, uploads and proxies are not among them."""
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; object-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Tell the browser to load nothing from another host, whatever a script or an answer asks for."""
MAX_VALUE = 1000
"""Characters of a value that does not come from a text box."""
SESSION = re.compile(r"[\w-]{1,100}")
EVENT = re.compile(rb'"event_id":\s*"([\w-]+)"')
LISTEN_SECONDS = 5.0
"""A page listens at once for what it asked; a call without a listener is dropped after this time."""


class PageMiddleware:
    """Passes on what the pages need, answers 404 to everything else, and sets headers.

    / leads to the page in the browser's language. SECURITY_HEADERS are added, and gradio's permissions for pages of
    other origins taken away.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan" or is_allowed(scope.get("method", ""), scope["path"]):
            await self._app(scope, receive, lambda message: send(_with_headers(message)))
        elif scope["type"] == "http" and scope["path"] in REDIRECTED:
            await _answer(307, "See the page in a language", send, *_redirection(scope))
        elif scope["type"] == "http":
            await _answer(404, "Not found", send)


def _redirection(scope: Message) -> list[tuple[bytes, bytes]]:
    """Headers that lead to the page in the language of a path, or else of a browser; relative, as behind a proxy."""
    accepted, path = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1"), scope["path"].strip("/")
    location = f"{path}/" if path in LANGUAGES else f"{preferred_language(accepted)}/{path}"
    return [(b"location", location.encode()), (b"vary", b"accept-language"), (b"cache-control", b"no-store")]


def is_allowed(method: str, path: str) -> bool:
    """Whether a page needs this route of gradio."""
    pattern, found = ALLOWED.get("GET" if method == "HEAD" else method), IN_LANGUAGE.fullmatch(path)
    return pattern is not None and found is not None and re.fullmatch(pattern, found[2]) is not None


class CallMiddleware:
    """Refuses calls that the page would not make, and drops those that nobody listens for.

    gradio writes the values of a call that fails to the log, and keeps what it computes until somebody fetches it.

    Args:
        app: gradio's application.
        pages: its Blocks by the language that their paths begin with.
    """

    def __init__(self, app: ASGIApp, pages: Mapping[str, Any]) -> None:
        self._app, self._pages = app, pages
        self._listeners: Counter[str] = Counter()
        self._drops: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        found = IN_LANGUAGE.fullmatch(scope.get("path", ""))
        path = found and found[2]
        if path == LISTEN:
            await self._listen(scope, receive, send)
        elif found and path in (JOIN, PREDICT):
            await self._call(scope, receive, send, self._pages[found[1]])
        else:
            await self._app(scope, receive, send)

    async def _listen(self, scope: Message, receive: Receive, send: Send) -> None:
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        self._listeners[session] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._listeners[session] -= 1
            self._listeners += Counter()  # those without a listener go

    async def _call(self, scope: Message, receive: Receive, send: Send, page: Any) -> None:
        body = await _body(receive)
        session = _session(page, body)
        if session is None:
            await _answer(400, "This is not a call that the page makes", send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        answer = bytearray()

        async def send_noting(message: Message) -> None:
            answer.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, replay, send_noting)
        if scope["path"].endswith(JOIN) and (found := EVENT.search(answer)) is not None:
            event = found[1].decode()
            asyncio.get_running_loop().call_later(LISTEN_SECONDS, self._drop_unheard, page, session, event)

    def _drop_unheard(self, page: Any, session: str, event: str) -> None:
        if not self._listeners[session]:
            self._drops.add(drop := asyncio.ensure_future(self._drop(page, session, event)))
            drop.add_done_callback(self._drops.discard)

    async def _drop(self, page: Any, session: str, event: str) -> None:
        queue = page._queue
        await queue.clean_events(event_id=event)
        pending = queue.pending_event_ids_session.get(session, set())
        pending.discard(event)
        if not pending:
            queue.pending_event_ids_session.pop(session, None)
            queue.pending_messages_per_session.pop(session, None)


def _session(page: Any, body: bytes) -> str | None:
    """The session of a call; None if it has another form than the page's calls."""
    try:
        call = json.loads(body)
        inputs, values, session = page.fns[call["fn_index"]].inputs, call["data"], call["session_hash"]
        fits = len(inputs) == len(values) and all(map(_is_value_of, inputs, values))
        return session if fits and SESSION.fullmatch(session) else None
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None


def _is_value_of(component: Any, value: Any) -> bool:
    """Whether a browser would send this value of a component."""
    kind = component.get_block_name()
    is_text_box = kind == "textbox"
    return (
        value is None
        or kind == "browserstate"  # whoever uses it examines it
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and (is_text_box or len(value) <= MAX_VALUE))
    )


async def _body(receive: Receive) -> bytes:
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


async def _answer(status: int, text: str, send: Send, *more: tuple[bytes, bytes]) -> None:
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(message: Message) -> Message:
    if message["type"] == "http.response.start":
        kept = [(name, value) for name, value in message.get("headers", ()) if not name.startswith(b"access-control-")]
        added = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
        message["headers"] = [*kept, *added]
    return message
