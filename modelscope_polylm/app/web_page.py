"""The page of the web app: tabs around one model."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from modelscope_polylm.app.web_answers import Answers
from modelscope_polylm.app.web_chat_tab import add_chat_tab
from modelscope_polylm.app.web_facts import facts_table, notes, title
from modelscope_polylm.app.web_translate_tab import add_translate_tab

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
