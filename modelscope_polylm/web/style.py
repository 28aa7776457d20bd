"""How the web app looks and what it does in the browser: system fonts only, contrast, room for thumbs, its scripts."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from modelscope_polylm.text.languages import LANGUAGES, NATIVE_NAMES
from modelscope_polylm.web.words import Words

FOLDER = Path(__file__).parent
HTML_LANGUAGES = {"en": "en", "zh": "zh-CN", "vi": "vi"}


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


def status_line(text: str) -> str:
    """One line of HTML below a form, read out when it changes."""
    return f'<p class="status" role="status">{html.escape(text)}</p>'


def show_problem(text: str) -> None:
    """Tell the user why there is no answer, in a box that stays until it is closed."""
    import gradio

    gradio.Warning(html.escape(text), duration=None)
