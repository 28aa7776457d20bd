"""The page of the web app: tabs around one model, and the application that serves it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelscope_polylm.web.answers import Answers
from modelscope_polylm.web.chat import add_chat_tab
from modelscope_polylm.web.facts import facts_table, notes, title
from modelscope_polylm.web.middleware import CallMiddleware, PageMiddleware
from modelscope_polylm.web.style import HEAD, theme
from modelscope_polylm.web.translate import add_translate_tab

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

MAX_BODY_BYTES = 250_000
"""Of a request; a text that fills the context has less."""
MAX_SESSIONS = 200
"""Pages whose state is kept; gradio takes 0.4 MB for each."""
HOST_HINT = "Start the page with --origin ORIGIN to show it under another name."


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
    # a message that waits for its turn in Answers is shown already and can be stopped; this bounds what is behind it
    page.queue(max_size=waiting, default_concurrency_limit=None, api_open=False)
    page.state_session_capacity = MAX_SESSIONS
    return page


def application(page: Any, local: bool = True, origins: Sequence[str] = ()) -> Any:
    """An ASGI application that serves a page of `build_page`.

    Args:
        page: the Blocks.
        local: whether it answers to this machine's own names alone.
        origins: other origins under which the page is shown, by a proxy in front of it.
    """
    import fastapi
    import gradio

    from modelscope_polylm.http.middleware import BodyMiddleware, HostMiddleware

    settings: dict[str, Any] = {
        "allowed_paths": [],
        "footer_links": [],
        "run_history": False,
        "mcp_server": False,
        "pwa": False,
    }
    mounted = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme(),
        head=HEAD,
        **settings,
    )
    app = PageMiddleware(BodyMiddleware(CallMiddleware(mounted, page), MAX_BODY_BYTES))
    return HostMiddleware(app, origins, HOST_HINT) if local else app
