"""Translations for the web app: a text in, the best translations with their scores out, and the tab for it."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request
from modelscope_polylm.web.answers import Answers, explain
from modelscope_polylm.web.facts import is_tiny, language_choices, language_code
from modelscope_polylm.web.style import show_problem, status_line

if TYPE_CHECKING:
    from modelscope_polylm.generator import GenerationResult

MAX_BEAMS = 16
KEEP_OWN = """(...values) => {
  const [found, status] = values.slice(-2), shown = document.createElement("div");
  shown.innerHTML = found;
  const asked = shown.querySelector("[data-asked]")?.dataset.asked;
  return asked === JSON.stringify(values.slice(0, -2)) ? [found, status] : ["", ""];
}"""
"""JavaScript that keeps the results and the line about them while they belong to what the fields hold."""


@dataclass(frozen=True)
class Translation:
    """One translation: its text, and the score of its beam (a mean log-probability: the nearer to 0, the likelier)."""

    text: str
    score: float | None


@dataclass(frozen=True)
class TranslationView:
    """What the page shows: translations, best first; one line about them; why there are none."""

    translations: Sequence[Translation] = ()
    status: str = ""
    problem: str | None = None


def request(text: str, source: str, target: str) -> str:
    """What the published examples ask, for two languages' ISO 639-1 codes."""
    return translation_request(text, LANGUAGES[target], LANGUAGES[source])


def translate(
    answers: Answers, text: str, source: str, target: str, beams: int, count: int
) -> Iterator[TranslationView]:
    """Yield views until the translations are there.

    Args:
        answers: answers with the model that translates.
        text: one sentence.
        source, target: ISO 639-1 codes.
        beams: beams of the search.
        count: translations to show; at most as many as beams.
    """
    if not text.strip():
        yield TranslationView(status="Write a sentence first.")
        return
    wanted: dict[str, Any] = {"do_sample": False, "num_beams": beams, "num_return_sequences": min(count, beams)}
    start = time.perf_counter()
    try:
        options = answers.generator.options({**wanted, "output_scores": True})
        prompt = answers.generator.reader.read(request(text.strip(), source, target), options, chat=True)
        for delta in answers.stream(prompt, options):
            seconds = time.perf_counter() - start
            if delta is not None and delta.result is not None:
                yield TranslationView(_translations(delta.result), f"{beams} beams in {seconds:.2f} s")
            else:
                yield TranslationView(status=f"{seconds:.1f} s")
    except Exception as error:
        yield TranslationView(problem=explain(error))


def _translations(result: GenerationResult) -> list[Translation]:
    pairs = zip(result.texts, result.completions, strict=True)
    return [Translation(text.strip(), completion.score) for text, completion in pairs]


def table(translations: Sequence[Translation], language: str, asked: Sequence[Any] = ()) -> str:
    """The translations as a table in HTML, nothing in them read as HTML; empty without any.

    Args:
        translations: best first.
        language: their ISO 639-1 code.
        asked: what the fields held; the page finds out by it whether they have changed.
    """
    if not translations:
        return ""
    rows = [
        f'<tr><td class="narrow">{rank}</td><td class="narrow">{_score(found)}</td>'
        f'<td dir="auto" lang="{html.escape(language)}">{html.escape(found.text)}</td></tr>'
        for rank, found in enumerate(translations, start=1)
    ]
    head = "<tr><th>#</th><th>Score</th><th>Translation</th></tr>"
    own = html.escape(json.dumps(asked, ensure_ascii=False, separators=(",", ":")))
    return f'<table class="plain" data-asked="{own}"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _score(found: Translation) -> str:
    return "" if found.score is None else f"{found.score:.4f}"


def add_translate_tab(answers: Answers) -> None:
    """Build the tab in the caller's layout.

    Args:
        answers: answers with the model.
    """
    import gradio

    only_english = is_tiny(answers.generator)
    sources = ("en",) if only_english else tuple(LANGUAGES)
    targets = tuple(code for code in LANGUAGES if not (only_english and code == "en"))
    text = gradio.Textbox(SENTENCE, label="Text", lines=2, max_lines=8, elem_id="source-text")
    with gradio.Row():
        source = _language_field("From", "source", sources, "en")
        target = _language_field("To", "target", targets, "zh")
    with gradio.Row():
        beams = gradio.Slider(1, MAX_BEAMS, value=4, step=1, label="Beams", buttons=[], min_width=140)
        count = gradio.Slider(1, MAX_BEAMS, value=4, step=1, label="Results", buttons=[], min_width=140)
    button = gradio.Button("Translate", variant="primary", elem_id="translate")
    status = gradio.HTML(status_line(""), apply_default_css=False)
    found = gradio.HTML(elem_id="translations", apply_default_css=False)

    def on_click(text: str, source: str, target: str, beams: int, count: int) -> Iterator[tuple[str, str]]:
        try:
            pair = language_code(source, sources), language_code(target, targets)
        except InputError as error:
            show_problem(str(error))
            yield "", status_line("")
            return
        for view in translate(answers, text, *pair, int(beams), int(count)):
            if view.problem:
                show_problem(view.problem)
            asked = (text, source, target, beams, count)
            yield table(view.translations, pair[1], asked), status_line(view.status)

    fields, results = [text, source, target, beams, count], [found, status]
    shown: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    click = button.click(on_click, fields, results, trigger_mode="always_last", **shown)
    for changed in (*(field.input for field in fields), click.then):
        changed(None, [*fields, *results], results, js=KEEP_OWN, queue=False, **shown)


def _language_field(label: str, name: str, codes: tuple[str, ...], value: str) -> Any:
    """A field for a language; what is typed into it counts, whether or not it is chosen from the list."""
    import gradio

    choices = language_choices(codes)
    return gradio.Dropdown(
        choices, value=value, label=label, elem_id=name, min_width=200, allow_custom_value=True, interactive=True
    )
