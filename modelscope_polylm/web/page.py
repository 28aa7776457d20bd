"""The pages of the web app, one a language: tabs around one model, and the application that serves them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelscope_polylm.web.answers import Answers
from modelscope_polylm.web.chat import add_chat_tab
from modelscope_polylm.web.facts import facts_table, notes, title
from modelscope_polylm.web.middleware import CallMiddleware, PageMiddleware
from modelscope_polylm.web.style import head, theme
from modelscope_polylm.web.translate import add_translate_tab
from modelscope_polylm.web.words import LANGUAGES, Words

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

MAX_BODY_BYTES = 1_000_000
"""Of a request; it holds the conversation, of which the context of a model is a small part."""
MAX_SESSIONS = 200
"""Pages whose state is kept; gradio takes 0.4 MB for each."""
HOST_HINT = "Start the page with --origin ORIGIN to show it under another name."


def build_pages(generator: TextGenerator, at_once: int = 1, waiting: int = 32) -> dict[str, Any]:
    """The page in each of its languages, as gradio Blocks whose queues are set up.

    Args:
        generator: the loaded model.
        at_once: answers that are computed at the same time.
        waiting: requests that may wait for their turn; further ones are refused.
    """
    answers = Answers(generator, at_once, waiting)
    pages = {language: _page(answers, Words(language)) for language in LANGUAGES}
    for page in pages.values():
        # a message that waits for its turn in Answers is shown already and can be stopped; this bounds the rest
        page.queue(max_size=waiting, default_concurrency_limit=None, api_open=False)
        page.state_session_capacity = MAX_SESSIONS
    return pages


def _page(answers: Answers, words: Words) -> Any:
    import gradio

    generator = answers.generator
    with gradio.Blocks(title=title(generator), analytics_enabled=False) as page:
        gradio.HTML(_languages(words), apply_default_css=False)
        gradio.Markdown(f"# {title(generator)}")
        for note in notes(generator):
            gradio.HTML(f'<p class="note">{html.escape(words(note))}</p>', apply_default_css=False)
        with gradio.Tab(words("Chat")):
            add_chat_tab(answers, words, page)
        with gradio.Tab(words("Translate")):
            add_translate_tab(answers, words)
        with gradio.Tab(words("Model")):
            gradio.HTML(facts_table(generator, words), apply_default_css=False)
    return page


def _languages(words: Words) -> str:
    """Links to the page in its other languages."""
    links = (
        f'<a href="../{language}/" lang="{language}" hreflang="{language}">{name}</a>'
        for language, name in LANGUAGES.items()
        if language != words.language
    )
    return f'<nav class="languages" aria-label="{words("Language of the page")}">{" ".join(links)}</nav>'


def application(pages: Mapping[str, Any], local: bool = True, origins: Sequence[str] = ()) -> Any:
    """An ASGI application that serves pages of `build_pages`, each below its language's code.

    Args:
        pages: the Blocks by language.
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
    mounted = fastapi.FastAPI(openapi_url=None)
    for language, page in pages.items():
        mounted = gradio.mount_gradio_app(
            mounted,
            page,
            path=f"/{language}",
            ssr_mode=False,
            enable_monitoring=False,
            theme=theme(),
            head=head(Words(language)),
            **settings,
        )
    app = PageMiddleware(BodyMiddleware(CallMiddleware(mounted, pages), MAX_BODY_BYTES))
    return HostMiddleware(app, origins, HOST_HINT) if local else app
