"""The translation tab of the web app: components, and what the button does."""

from __future__ import annotations

from collections.abc import Iterator

from modelscope_polylm.app.web_answers import Answers
from modelscope_polylm.app.web_examples import language_choices
from modelscope_polylm.app.web_facts import is_tiny
from modelscope_polylm.app.web_style import show_problem, status_line
from modelscope_polylm.app.web_translate import table, translate
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE

MOST_BEAMS = 16


def add_translate_tab(answers: Answers) -> None:
    """Build the tab in the caller's layout.

    Args:
        answers: answers with the model.
    """
    import gradio

    only_english = is_tiny(answers.generator)
    text = gradio.Textbox(SENTENCE, label="Text", lines=2, max_lines=8, elem_id="source-text")
    with gradio.Row():
        sources = language_choices(("en",) if only_english else tuple(LANGUAGES))
        targets = [choice for choice in language_choices() if not (only_english and choice[1] == "en")]
        source = gradio.Dropdown(sources, value="en", label="From", elem_id="source", min_width=200)
        target = gradio.Dropdown(targets, value="zh", label="To", elem_id="target", min_width=200)
    with gradio.Row():
        beams = gradio.Slider(1, MOST_BEAMS, value=4, step=1, label="Beams", buttons=[], min_width=140)
        count = gradio.Slider(1, MOST_BEAMS, value=4, step=1, label="Results", buttons=[], min_width=140)
    button = gradio.Button("Translate", variant="primary", elem_id="translate")
    status = gradio.HTML(status_line(""), apply_default_css=False)
    found = gradio.HTML(elem_id="translations", apply_default_css=False)

    def on_click(text: str, source: str, target: str, beams: int, count: int) -> Iterator[tuple[str, str]]:
        for view in translate(answers, text, source, target, int(beams), int(count)):
            if view.problem:
                show_problem(view.problem)
            yield table(view.translations, target), status_line(view.status)

    button.click(
        on_click,
        [text, source, target, beams, count],
        [found, status],
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="once",
    )
