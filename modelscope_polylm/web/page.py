"""The pages of the web app, one a language: tabs around one model, how they look, and the application that serves them.

They load nothing from elsewhere: system fonts only, contrast, room for thumbs, and scripts of their own.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.text.languages import LANGUAGES, NATIVE_NAMES
from modelscope_polylm.web.answers import Answers
from modelscope_polylm.web.chat import add_chat_tab
from modelscope_polylm.web.middleware import CallMiddleware, PageMiddleware
from modelscope_polylm.web.model import facts_table, notes, title
from modelscope_polylm.web.translate import add_translate_tab
from modelscope_polylm.web.words import LANGUAGES as PAGE_LANGUAGES
from modelscope_polylm.web.words import Words

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

MAX_BODY_BYTES = 1_000_000
"""Of a request; it holds the conversation, of which the context of a model is a small part."""
MAX_SESSIONS = 200
"""Pages whose state is kept; gradio takes 0.4 MB for each."""
HOST_HINT = "Start the page with --origin ORIGIN to show it under another name."
FOLDER = Path(__file__).parent
HTML_LANGUAGES = {"en": "en", "zh": "zh-CN", "vi": "vi"}


def build_pages(generator: TextGenerator, at_once: int = 1, waiting: int = 32) -> dict[str, Any]:
    """The page in each of its languages, as gradio Blocks whose queues are set up.

    Args:
        generator: the loaded model.
        at_once: answers that are computed at the same time.
        waiting: requests that may wait for their turn; further ones are refused.
    """
    answers = Answers(generator, at_once, waiting)
    pages = {language: _page(answers, Words(language)) for language in PAGE_LANGUAGES}
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
        for language, name in PAGE_LANGUAGES.items()
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


def head(words: Words) -> str:
    """For the head of the page: what is handed to gradio as CSS reaches only a part of it."""
    said = {
        "lang": HTML_LANGUAGES[words.language],
        "languages": {NATIVE_NAMES[code]: code for code in LANGUAGES},
        "swap": words("Swap languages"),
        **{role: words(role) for role in ("User", "Assistant")},
    }
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    constants = f"const polylm = {json.dumps(said, ensure_ascii=False)};"
    return f"<style>{style}</style><script>{constants}{script}</script>"


def theme() -> Any:
    """Gradio's own look without fonts to fetch; texts have a contrast of 4.5:1 and the edges of controls one of 3:1."""
    import gradio

    fonts: dict[str, Any] = {"font": [gradio.themes.Font("sans-serif")], "font_mono": [gradio.themes.Font("monospace")]}
    texts = {
        f"{part}_color{suffix}": f"*neutral_{shade}"
        for part in ("block_info_text", "input_placeholder")
        for suffix, shade in (("", 600), ("_dark", 300))
    }
    edges = {
        f"{control}_border_color{suffix}": f"*neutral_{shade}"
        for control in ("input", "checkbox")
        for suffix, shade in (("", 500), ("_dark", 500))
    }
    buttons = {"button_primary_background_fill": "*primary_600", "button_primary_background_fill_hover": "*primary_700"}
    return gradio.themes.Default(primary_hue="indigo", **fonts).set(**texts, **edges, **buttons)
