"""What the web app offers and says: examples, options, facts of the model."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import option_fields
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.text.languages import LANGUAGES, NATIVE_NAMES
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.web.model import (
    NOT_SHOWN,
    QUESTIONS,
    TINY_NOTE,
    examples,
    facts,
    facts_table,
    follows_instructions,
    language_choices,
    notes,
    read_values,
    shown_fields,
    starting_values,
    title,
)
from modelscope_polylm.web.words import Words


def chosen(**values: Any) -> list[Any]:
    """What the page hands over when only these options are set."""
    return [values.get(field.name) for field in shown_fields()]


def test_examples_speak_every_language() -> None:
    assert list(QUESTIONS) == list(NATIVE_NAMES) == list(LANGUAGES)
    assert len(set(QUESTIONS.values())) == len(set(NATIVE_NAMES.values())) == 18
    assert examples(answers_questions=True) == QUESTIONS
    requests = examples(answers_questions=False)
    assert list(requests) == [code for code in LANGUAGES if code != "en"]
    assert requests["he"].endswith("Translate this sentence from English to Hebrew.")


def test_languages_are_named_in_both_ways() -> None:
    shown = {code: label for label, code in language_choices("en")}
    assert (shown["en"], shown["ar"]) == ("English", "Arabic · العربية")
    shown = {code: label for label, code in language_choices("vi")}
    assert (shown["en"], shown["vi"]) == ("Tiếng Anh · English", "Tiếng Việt")
    assert list(shown) == list(LANGUAGES)


def test_the_page_has_the_options_that_people_can_set() -> None:
    assert {field.name for field in shown_fields()} == {field.name for field in option_fields()} - NOT_SHOWN
    assert shown_fields()[0].name == "max_new_tokens"


def test_options_start_with_those_of_the_model_but_stream(tiny: TextGenerator) -> None:
    values = starting_values(tiny)
    assert (values["num_beams"], values["max_new_tokens"], values["do_sample"]) == (1, 128, False)
    assert tiny.options(read_values(list(values.values()))) == tiny.options({"num_beams": 1})


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("seed", "", None),
        ("seed", "  ", None),
        ("seed", None, None),
        ("seed", "7", 7),
        ("max_new_tokens", " 64 ", 64),
        ("min_p", "0.25", 0.25),
        ("top_k", 40.0, 40),
        ("top_p", 1, 1),
        ("do_sample", False, False),
        ("early_stopping", "never", "never"),
        ("beam_rules", "(unset)", None),
        ("stop_strings", "。\n\nEnd", ["。", "End"]),
        ("stop_strings", "\n", None),
    ],
)
def test_options_are_read(name: str, value: Any, read: Any) -> None:
    assert read_values(chosen(**{name: value})) == ({} if read is None else {name: read})


@pytest.mark.parametrize(("name", "value"), [("seed", "many"), ("seed", "1.5"), ("min_p", "a half")])
def test_options_that_are_no_numbers(name: str, value: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"{name}={value!r}")):
        read_values(chosen(**{name: value}))


def with_release(generator: TextGenerator, name: str | None, format_from: str = "tiny") -> Any:
    """The generator as if its snapshot were another release's."""
    release, prompt_format = RELEASES[name] if name else None, FORMATS[RELEASES[format_from].prompt_format]
    changed = SimpleNamespace(**{**vars(generator.snapshot), "release": release, "prompt_format": prompt_format})
    return SimpleNamespace(snapshot=changed, backend=generator.backend)


@pytest.mark.parametrize(
    ("release", "format_from", "heading", "said", "instructions"),
    [
        ("tiny", "tiny", "PolyLM tiny", TINY_NOTE, False),
        ("assistant-13b", "assistant-13b", "PolyLM assistant-13b", None, True),
        ("13b", "13b", "PolyLM 13b", "continues texts", False),
        ("ecomm-13b", "ecomm-13b", "PolyLM ecomm-13b", "each message is answered on its own", True),
        (None, "assistant-13b", "PolyLM", None, True),
    ],
)
def test_what_is_said_of_a_release(
    tiny: TextGenerator, release: str | None, format_from: str, heading: str, said: str | None, instructions: bool
) -> None:
    generator = with_release(tiny, release, format_from)
    assert title(generator) == heading
    assert follows_instructions(generator) is instructions
    assert [said in note for note in notes(generator)] == ([True] if said else [])


def test_facts_of_the_model(tiny: TextGenerator) -> None:
    shown = facts(with_release(tiny, "tiny"), Words())
    assert shown["Parameters"] == "4,058,624"
    assert shown["Runs on"] == "cpu, float32, native backend"
    assert "num_beams=4" in shown["Default options"]
    assert str(tiny.snapshot.folder.parent) not in facts_table(tiny, Words())
