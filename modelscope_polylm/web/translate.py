"""Translations for the web app: a text in, the best translations with their scores out, and the tab for it."""

from __future__ import annotations

import html
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError
from modelscope_polylm.text.languages import NAMES, SENTENCE
from modelscope_polylm.translation.translator import TranslationRun, Translator
from modelscope_polylm.web.answers import Answers, StopSign, explain, show_problem, status_line, waiting_line
from modelscope_polylm.web.model import language_choices, language_code
from modelscope_polylm.web.words import Words

if TYPE_CHECKING:
    from modelscope_polylm.translation.translator import TextTranslation

MAX_BEAMS = 16
DETECT = ""
"""The value of the source language that is to be found."""


@dataclass(frozen=True)
class Translation:
    """One translation: its text, and the score of its beam (a mean log-probability: the nearer to 0, the likelier)."""

    text: str
    score: float | None


@dataclass(frozen=True)
class TranslationView:
    """What the page shows: translations, best first; their source language; one line; why there are none."""

    translations: Sequence[Translation] = ()
    source: str = ""
    status: str = ""
    busy: bool = False
    problem: str | None = None


class Translations:
    """Translates with one model, for a page in one language."""

    def __init__(self, answers: Answers, words: Words) -> None:
        self._answers, self._words = answers, words

    def translate(
        self, text: str, source: str, target: str, beams: int, count: int, stop_sign: StopSign
    ) -> Iterator[TranslationView]:
        """Yield views until the translations are there.

        Args:
            text: of any length; its sentences are answered together.
            source, target: ISO 639-1 codes; DETECT finds the source.
            beams: beams of the search.
            count: translations to show; at most as many as beams.
            stop_sign: ends the translation when it is raised.
        """
        stop_sign.raised = False
        if not text.strip():
            yield TranslationView(status=self._words("Write a sentence first."))
            return
        start = time.perf_counter()
        try:
            translator = Translator(self._answers.generator, {"num_beams": beams}, alternatives=min(count, beams))
            run = TranslationRun(translator, [translator.split(text.strip(), target, source or None)])
            for line in self._run(run, stop_sign):
                seconds = time.perf_counter() - start
                yield TranslationView(status=f"{line}{self._words('{seconds} s', seconds=f'{seconds:.1f}')}", busy=True)
            seconds = time.perf_counter() - start
            if stop_sign.raised:
                yield TranslationView(status=self._words("Stopped after {seconds} s", seconds=f"{seconds:.2f}"))
            else:
                yield self._result(run.translations()[0], source, beams, seconds)
        except Exception as error:
            yield TranslationView(problem=explain(error, self._words))

    def _run(self, run: TranslationRun, stop_sign: StopSign) -> Iterator[str]:
        """Answer what the run asks for; yields how to begin the line about it."""
        name = uuid.uuid4().hex
        while requests := run.requests():
            for results in self._answers.reply(requests, name):
                if stop_sign.raised:
                    self._answers.stop(name)
                    return
                if results is not None:
                    run.take(results)
                yield waiting_line(self._answers, name, self._words)
            self._answers.stop(name)

    def _result(self, found: TextTranslation, source: str, beams: int, seconds: float) -> TranslationView:
        parts = [self._words("{beams} beams in {seconds} s", beams=beams, seconds=f"{seconds:.2f}")]
        if source == DETECT:
            language = NAMES[self._words.language][found.source]
            parts.append(self._words("from {language}, as detected", language=language))
        if found.suspicious:
            problems = ", ".join(dict.fromkeys(each.problem or "" for each in found.suspicious))
            numbers = {"count": len(found.suspicious), "all": len(found.segments), "problems": problems}
            parts.append(self._words("to be looked at: {count} of {all} ({problems})", **numbers))
        return TranslationView([Translation(*each) for each in found.alternatives], found.source, " · ".join(parts))

    def table(self, view: TranslationView, language: str, asked: Sequence[Any] = ()) -> str:
        """The translations as a table in HTML, nothing in them read as HTML; empty without any.

        Args:
            view: the translations, best first.
            language: their ISO 639-1 code.
            asked: what the fields held; the page finds out by it whether they have changed.
        """
        if not view.translations:
            return ""
        copy = f'<td class="narrow"><button type="button" class="copy">{self._words("Copy")}</button></td>'
        rows = [
            f'<tr><td class="narrow">{rank}</td><td class="narrow">{_score(found)}</td>'
            f'<td dir="auto" lang="{html.escape(language)}">{html.escape(found.text)}</td>{copy}</tr>'
            for rank, found in enumerate(view.translations, start=1)
        ]
        score, translation = self._words("Score"), self._words("Translation")
        head = f"<tr><th>#</th><th>{score}</th><th>{translation}</th><td></td></tr>"
        own = html.escape(json.dumps(asked, ensure_ascii=False, separators=(",", ":")))
        return (
            f'<table class="plain" data-asked="{own}" data-source="{html.escape(view.source)}">'
            f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        )


def _score(found: Translation) -> str:
    return "" if found.score is None else f"{found.score:.4f}"


def add_translate_tab(answers: Answers, words: Words) -> None:
    """Build the tab in the caller's layout.

    Args:
        answers: answers with the model.
        words: the page's language.
    """
    import gradio

    translations, sign = Translations(answers, words), gradio.State(StopSign())
    help = words("Ctrl+Enter translates.")
    text = gradio.Textbox(SENTENCE, label=words("Text"), info=help, lines=2, max_lines=8, elem_id="source-text")
    with gradio.Row():
        detect = [(words("Detect the language"), DETECT)]
        source = _language_field(words("From"), "source", [*detect, *language_choices(words.language)], DETECT)
        swap = gradio.Button("⇄", elem_id="swap", size="sm", min_width=44, scale=0)
        target = _language_field(words("To"), "target", language_choices(words.language), "zh")
    with gradio.Row():
        beams, count = (
            gradio.Slider(1, MAX_BEAMS, value=4, step=1, label=words(name), info=words(help), buttons=[], min_width=140)
            for name, help in (
                ("Width of the search", "Beams of beam search; more take longer."),
                ("Results", "Translations to show, the best first."),
            )
        )
    with gradio.Row():
        button = gradio.Button(words("Translate"), variant="primary", elem_id="translate", scale=3)
        stop = gradio.Button(words("Stop"), elem_id="stop-translating", interactive=False, scale=1, min_width=80)
    status = gradio.HTML(status_line(""), elem_id="translation-status", apply_default_css=False)
    found = gradio.HTML(elem_id="translations", apply_default_css=False)

    def on_click(
        text: str, source: str, target: str, beams: int, count: int, sign: StopSign
    ) -> Iterator[tuple[str, str, Any]]:
        try:
            pair = language_code(source) if source else DETECT, language_code(target)
        except InputError as error:
            show_problem(str(error))
            yield "", status_line(""), gradio.update(interactive=False)
            return
        for view in translations.translate(text, *pair, int(beams), int(count), sign):
            if view.problem:
                show_problem(view.problem)
            shown = translations.table(view, pair[1], (text, source, target, beams, count))
            yield shown, status_line(view.status), gradio.update(interactive=view.busy)

    def on_stop(sign: StopSign) -> None:
        sign.raised = True

    fields, results = [text, source, target, beams, count], [found, status]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    click = button.click(on_click, [*fields, sign], [*results, stop], trigger_mode="always_last", **quiet)
    stop.click(on_stop, sign, None, queue=False, **quiet)
    for changed in (*(field.input for field in fields), click.then):
        changed(None, [*fields, *results], results, js="keepOwn", queue=False, **quiet)
    swapped = swap.click(None, [text, source, target, found], [text, source, target], js="swap", queue=False, **quiet)
    swapped.then(None, [*fields, *results], results, js="keepOwn", queue=False, **quiet)


def _language_field(label: str, name: str, choices: list[tuple[str, str]], value: str) -> Any:
    """A field for a language; what is typed into it counts, whether or not it is chosen from the list."""
    import gradio

    return gradio.Dropdown(
        choices, value=value, label=label, elem_id=name, min_width=200, allow_custom_value=True, interactive=True
    )
