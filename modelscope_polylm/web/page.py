"""The page of the web app: tabs around one model."""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from modelscope_polylm.web.answers import Answers
from modelscope_polylm.web.chat import add_chat_tab
from modelscope_polylm.web.facts import facts_table, notes, title
from modelscope_polylm.web.translate import add_translate_tab

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator


def build_page(generator: TextGenerator, at_once: int = 1, waiting: int = 32) -> Any:
    """The page as gradio Blocks, its queue set up.

    Args:
        generator: the loaded model.
        at_once: answers that are computed at the same time.
        waiting: requests that may wait for their turn; further ones are refused.
    """
    import gradio

    answers = Answers(generator, at_once, waiting)
    with gradio.Blocks(title=title(generator), analytics_enabled=False) as page:
        gradio.Markdown(f"# {title(generator)}")
        for note in notes(generator):
            gradio.HTML(f'<p class="note">{html.escape(note)}</p>', apply_default_css=False)
        with gradio.Tab("Chat"):
            add_chat_tab(answers)
        with gradio.Tab("Translate"):
            add_translate_tab(answers)
        with gradio.Tab("Model"):
            gradio.HTML(facts_table(generator), apply_default_css=False)
    # Answers has the limits: a message that waits for its turn is shown already, and can be stopped.
    page.queue(max_size=None, default_concurrency_limit=None, api_open=False)
    return page


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

ALLOWED = {
    "GET": r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|app_id|startup-events|queue/data|heartbeat/\w+)",
    "POST": r"/gradio_api/(queue/join|run/predict|cancel|reset)",
}
"""What the page needs of gradio's routes, by method. Its routes for files, uploads and proxies are not among them."""
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; object-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Tell the browser to load nothing from another host, whatever a script or an answer asks for."""


class PageOnly:
    """Passes on what the page needs, answers 404 to everything else, and adds SECURITY_HEADERS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan" or is_allowed(scope.get("method", ""), scope["path"]):
            await self._app(scope, receive, lambda message: send(_with_headers(message)))
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Not found\n"})


def is_allowed(method: str, path: str) -> bool:
    """Whether the page needs this route of gradio."""
    pattern = ALLOWED.get("GET" if method == "HEAD" else method)
    return pattern is not None and re.fullmatch(pattern, path) is not None


def _with_headers(message: Message) -> Message:
    if message["type"] == "http.response.start":
        added = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
        message["headers"] = [*message.get("headers", ()), *added]
    return message


def application(page: Any) -> PageOnly:
    """An ASGI application that serves a page of `web_page.build_page`."""
    import fastapi
    import gradio

    from modelscope_polylm.web.style import HEAD, theme

    host = fastapi.FastAPI(openapi_url=None)
    settings: dict[str, Any] = {
        "allowed_paths": [],
        "footer_links": [],
        "run_history": False,
        "mcp_server": False,
        "pwa": False,
    }
    mounted = gradio.mount_gradio_app(
        host, page, path="/", ssr_mode=False, enable_monitoring=False, theme=theme(), head=HEAD, **settings
    )
    return PageOnly(mounted)
