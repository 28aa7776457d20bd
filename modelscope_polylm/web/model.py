"""What the web app shows of its model: facts, what to try, and options, each component made from its declaration."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generation.options import option_fields
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

NOT_SHOWN = frozenset(
    {"num_return_sequences", "output_scores", "output_logprobs", "bad_words_ids", "eos_token_id", "pad_token_id"}
)
"""Options of programs: they report more than one text, or are written in token ids."""
FIRST = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "seed")
"""The options that most people want; the others come after them."""
UNSET = "(unset)"
PLAIN_NAMES = {
    "max_new_tokens": "Longest answer",
    "do_sample": "Draw at random",
    "temperature": "Temperature",
    "top_p": "Share of likely tokens",
    "top_k": "Number of likely tokens",
    "num_beams": "Width of the search",
    "repetition_penalty": "Avoid repetition",
    "seed": "Random seed",
    "max_length": "Longest prompt and answer",
    "min_new_tokens": "Shortest answer",
    "min_length": "Shortest prompt and answer",
    "early_stopping": "End of the search",
    "length_penalty": "Favour length",
    "min_p": "Least probability",
    "typical_p": "Typical share",
    "no_repeat_ngram_size": "No sequence twice",
    "stop_strings": "Stop at these texts",
    "beam_rules": "Rules of the search",
}
"""What people call an option; its own name is in its help. Options without one go by their own."""


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


def shown_fields() -> list[Field[Any]]:
    """The options of the page, the most wanted first."""
    fields = {field.name: field for field in option_fields() if field.name not in NOT_SHOWN}
    return [*(fields.pop(name) for name in FIRST), *fields.values()]


def starting_values(generator: TextGenerator) -> dict[str, Any]:
    """What the page's options start from: the model's own defaults, but a search whose answers can be streamed."""
    options = generator.options({"num_beams": 1, "do_sample": bool(generator.snapshot.generation.get("do_sample"))})
    return {field.name: getattr(options, field.name) for field in shown_fields()}


def read_values(values: Sequence[Any]) -> dict[str, Any]:
    """The options as chosen on the page, in the order of `shown_fields`; those left empty are not among them."""
    given = {field.name: _read(field, value) for field, value in zip(shown_fields(), values, strict=True)}
    return {name: value for name, value in given.items() if value is not None}


def _read(field: Field[Any], value: Any) -> Any:
    if value in (None, "", UNSET):
        return None
    if _is_texts(field):
        return [line for line in str(value).splitlines() if line] or None
    if isinstance(value, str) and _is_number(field):
        return _number(field, value)
    # a browser has one kind of number
    return int(value) if isinstance(value, float) and value.is_integer() and _is_whole(field) else value


def _number(field: Field[Any], text: str) -> float | None:
    kind = int if _is_whole(field) else float
    try:
        return kind(text) if text.strip() else None
    except ValueError:
        raise OptionError(f"{field.name}={text!r} must be a {'whole ' * _is_whole(field)}number, or empty.") from None


def components(values: Mapping[str, Any], words: Words) -> list[Any]:
    """A gradio component for each of `shown_fields`, in the context of the caller's layout.

    Args:
        values: what they start from, by name.
        words: the page's language.
    """
    return [_component(field, values[field.name], words) for field in shown_fields()]


def _component(field: Field[Any], value: Any, words: Words) -> Any:
    import gradio

    metadata, step = field.metadata, 1 if _is_whole(field) else 0.05
    more = f"{words('One a line.')} " if _is_texts(field) else ""
    common: dict[str, Any] = {
        "label": words(PLAIN_NAMES.get(field.name, field.name)),
        "info": f"{words(metadata['help'])} {more}({field.name})",
        "elem_id": f"option-{field.name}",
    }
    if "choices" in metadata:
        unset: list[Any] = [] if field.default is not None else [(words(UNSET), UNSET)]
        choices: list[Any] = [*unset, *((str(choice), choice) for choice in metadata["choices"])]
        return gradio.Dropdown(choices, value=UNSET if value is None else value, **common)
    if _is_texts(field):
        return gradio.Textbox(value=_lines(value), lines=2, **common)
    if str(field.type) == "bool":
        return gradio.Checkbox(value=value, **common)
    if field.default is None:  # a number box cannot be empty
        shown = "" if value is None else str(value)
        return gradio.Textbox(value=shown, placeholder=words("unset"), max_lines=1, **common)
    if "minimum" in metadata and "maximum" in metadata:
        return gradio.Slider(metadata["minimum"], metadata["maximum"], value=value, step=step, buttons=[], **common)
    return gradio.Number(value=value, step=step, precision=0 if step == 1 else None, **common)


def _is_texts(field: Field[Any]) -> bool:
    return str(field.type).startswith("str") and "list" in str(field.type)


def _is_number(field: Field[Any]) -> bool:
    return str(field.type).startswith(("int", "float"))


def _is_whole(field: Field[Any]) -> bool:
    return str(field.type).startswith("int")


def _lines(value: str | Sequence[str] | None) -> str:
    return value if isinstance(value, str) else "\n".join(value or ())
