"""What the web app says about the model that it runs."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from modelscope_polylm.errors import InputError
from modelscope_polylm.releases import RELEASES, Release
from modelscope_polylm.text.languages import LANGUAGES, NAMES, NATIVE_NAMES, SENTENCE, translation_request
from modelscope_polylm.web.words import LANGUAGES as PAGE_LANGUAGES
from modelscope_polylm.web.words import Words

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

TINY_NOTE = (
    "This is the bundled demonstration model. All it can do is translate “X is the capital of Y.” from English into "
    "the 17 other languages, for 40 countries; anything else gives nonsense."
)
BASE_NOTE = "This release continues texts. It was not trained to follow instructions or to hold a conversation."
SINGLE_TURN_NOTE = "This release has no format for conversations: each message is answered on its own."
UNKNOWN_FORMAT_NOTE = "The release of this model is not known: start the demo with --release to send messages."

QUESTIONS = {
    "en": "What is the capital of China?",
    "zh": "中国的首都是哪里？",
    "ru": "Какой город является столицей Китая?",
    "es": "¿Cuál es la capital de China?",
    "de": "Was ist die Hauptstadt von China?",
    "fr": "Quelle est la capitale de la Chine ?",
    "it": "Qual è la capitale della Cina?",
    "pt": "Qual é a capital da China?",
    "ja": "中国の首都はどこですか？",
    "vi": "Thủ đô của Trung Quốc là gì?",
    "id": "Apa ibu kota Tiongkok?",
    "pl": "Jakie miasto jest stolicą Chin?",
    "nl": "Wat is de hoofdstad van China?",
    "ar": "ما هي عاصمة الصين؟",
    "tr": "Çin'in başkenti neresidir?",
    "th": "เมืองหลวงของจีนคือเมืองอะไร",
    "he": "מהי עיר הבירה של סין?",
    "ko": "중국의 수도는 어디입니까?",
}
"""One question by ISO 639-1 code."""


def is_tiny(generator: TextGenerator) -> bool:
    """Whether the model is the bundled demonstration model."""
    return generator.snapshot.release is RELEASES["tiny"]


def follows_instructions(generator: TextGenerator) -> bool:
    """Whether the model can be asked anything."""
    release = generator.snapshot.release
    return release is None or not (is_tiny(generator) or release.kind == "base")


def title(generator: TextGenerator) -> str:
    """The model's name for people."""
    release = generator.snapshot.release
    return f"PolyLM {release.name}" if release else "PolyLM"


def notes(generator: TextGenerator) -> list[str]:
    """What to know before the first message."""
    release = generator.snapshot.release
    if is_tiny(generator):
        return [TINY_NOTE]
    if generator.snapshot.prompt_format is None:
        return [UNKNOWN_FORMAT_NOTE]
    if generator.snapshot.prompt_format.earlier_turn is not None:
        return []
    return [BASE_NOTE if release and release.kind == "base" else SINGLE_TURN_NOTE]


def facts(generator: TextGenerator, words: Words) -> dict[str, str]:
    """The model's facts: name -> value. Folders of this machine are not among them."""
    snapshot, backend = generator.snapshot, generator.backend
    config, release = snapshot.config, snapshot.release
    network = {"layers": config.layers, "heads": config.heads, "size": f"{config.hidden_size:,}"}
    place = {"device": backend.device, "dtype": str(backend.dtype).removeprefix("torch."), "backend": backend.name}
    return {
        "Release": f"{release.name} ({release.kind})" if release else words("unknown"),
        "Source": _origin(release, words),
        "Parameters": f"{config.parameters:,}",
        "Network": words("{layers} layers, {heads} heads, hidden size {size}", **network),
        "Context": words("{tokens} tokens, prompt and answer together", tokens=f"{config.max_positions:,}"),
        "Vocabulary": words("{pieces} pieces", pieces=f"{snapshot.tokenizer.vocab_size:,}"),
        "Prompt format": snapshot.prompt_format.name if snapshot.prompt_format else words("unknown"),
        "Runs on": words("{device}, {dtype}, {backend} backend", **place),
        "Default options": ", ".join(f"{name}={value}" for name, value in snapshot.generation.items()),
    }


def _origin(release: Release | None, words: Words) -> str:
    if release is None:
        return words("a folder")
    return words("bundled with modelscope_polylm") if release is RELEASES["tiny"] else release.model_id


def facts_table(generator: TextGenerator, words: Words) -> str:
    """The facts as a table in HTML."""
    rows = (
        f"<tr><th>{html.escape(words(name))}</th><td>{html.escape(value)}</td></tr>"
        for name, value in facts(generator, words).items()
    )
    return f'<table class="plain"><tbody>{"".join(rows)}</tbody></table>'


def examples(answers_questions: bool) -> dict[str, str]:
    """Messages to try, by language code.

    Args:
        answers_questions: True gives a question in each language; False, for models that only continue or translate,
            asks for a translation into each language but English.
    """
    if answers_questions:
        return dict(QUESTIONS)
    return {code: translation_request(SENTENCE, name) for code, name in LANGUAGES.items() if code != "en"}


def language_choices(language: str) -> list[tuple[str, str]]:
    """Labels and codes for a choice of languages: the name in the page's language, then the language's own."""
    return [(_label(code, language), code) for code in LANGUAGES]


def language_code(typed: str) -> str:
    """The code of a language that was chosen or typed: its code, a name of it, or how a name begins.

    Args:
        typed: what the field holds.

    Raises:
        InputError: none of them, or several.
    """
    text = typed.strip().casefold()
    names = {code: {name.casefold() for name in _names(code)} for code in LANGUAGES}
    exact = [code for code in LANGUAGES if text in names[code]]
    begun = [code for code in LANGUAGES if text and any(name.startswith(text) for name in names[code])]
    for found in (exact, begun):
        if len(found) == 1:
            return found[0]
    raise InputError(f"{typed!r:.60} is not one of the languages here: choose one from the list.")


def _names(code: str) -> list[str]:
    shown = (name for page in PAGE_LANGUAGES for name in (NAMES[page][code], _label(code, page)))
    return [code, NATIVE_NAMES[code], *shown]


def _label(code: str, language: str) -> str:
    name = NAMES[language][code]
    return name if name == NATIVE_NAMES[code] else f"{name} · {NATIVE_NAMES[code]}"
