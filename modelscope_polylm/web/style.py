"""How the web app looks: system fonts only, text in the direction of its language, room for thumbs."""

from __future__ import annotations

import html
from typing import Any

CSS = """
:root body { --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif !important;
  --font-mono: ui-monospace, Menlo, Consolas, "Noto Sans Mono", monospace !important; font-family: var(--font); }
.gradio-container .app { max-width: 820px !important; padding: 1rem 1.5rem !important; }
.gradio-container main { width: 100%; }
.gradio-container .html-container { padding: 0 !important; }
p.note { margin: 0; padding: .6rem .8rem; border-inline-start: 4px solid var(--color-accent);
  background: var(--background-fill-secondary); color: var(--body-text-color); }
p.status { min-height: 1.4em; margin: 0; color: var(--body-text-color); opacity: .8; }

/* each paragraph in the direction of its first letter, also while it grows */
#chat .message-content, #chat .message-content *, #message textarea, #source-text textarea, #translations td {
  unicode-bidi: plaintext; text-align: start !important; }
#chat .message-content { white-space: pre-wrap; overflow-wrap: anywhere; }
#chat { height: 45vh !important; }
#chat .top-panel { display: none; }

#message textarea { padding: .75rem 5rem .75rem .8rem !important; }
#message .submit-button, #message .stop-button { margin: 0 .35rem .35rem 0; padding: .2rem .8rem;
  border-radius: var(--button-large-radius); background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); }
#tools button { min-height: 36px; }
#examples .gallery { gap: .4rem; }
#options .form { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr));
  background: var(--block-background-fill); }
#options .form > * { min-width: 0 !important; }
#options .form > #option-beam_rules { grid-column: 1 / -1; }

table.plain { width: 100%; border-collapse: collapse; color: var(--body-text-color); }
table.plain th, table.plain td { padding: .5rem .6rem; text-align: start; vertical-align: top;
  overflow-wrap: anywhere; border-bottom: 1px solid var(--border-color-primary); }
table.plain th { font-weight: 600; white-space: nowrap; }
table.plain .narrow { width: 1%; white-space: nowrap; font-variant-numeric: tabular-nums; }

@media (max-width: 600px) {
  .gradio-container .app { padding: .5rem .75rem !important; }
  #message textarea, #source-text textarea { font-size: 16px; } /* smaller, and a phone zooms in */
}
"""
SCRIPT = """
// what is typed into a field for a language replaces the language that stands there
let entered = null;
document.addEventListener("focusin", ({target}) => {
  entered = target.matches("#source input, #target input") ? target : null;
  entered?.select();
});
document.addEventListener("click", ({target}) => {  // a click has put the cursor somewhere
  if (target === entered) target.select();
  entered = null;
});
"""
HEAD = f"<style>{CSS}</style><script>{SCRIPT}</script>"
"""For the head of the page: what is handed to gradio as CSS reaches only a part of it."""


def theme() -> Any:
    """Gradio's own look, without fonts to fetch, and with help texts that can be read."""
    import gradio

    fonts: dict[str, Any] = {"font": [gradio.themes.Font("sans-serif")], "font_mono": [gradio.themes.Font("monospace")]}
    return gradio.themes.Default(primary_hue="indigo", **fonts).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )


def status_line(text: str) -> str:
    """One line of HTML below a form, read out when it changes."""
    return f'<p class="status" role="status">{html.escape(text)}</p>'


def show_problem(text: str) -> None:
    """Tell the user why there is no answer, in a box that stays until it is closed."""
    import gradio

    gradio.Warning(html.escape(text), duration=None)
