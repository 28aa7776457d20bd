"""Languages by their codes and names."""

from __future__ import annotations

import pytest
from babel import Locale

from modelscope_polylm.errors import InputError
from modelscope_polylm.text.languages import (
    LANGUAGES,
    NAMES,
    NATIVE_NAMES,
    SCRIPTS,
    TRANSLATIONS,
    find_language,
    script,
)


def test_names_are_those_of_the_cldr() -> None:
    for language, names in NAMES.items():
        known = Locale(language).languages
        assert {code: name.casefold() for code, name in names.items()} == {
            code: known[code].casefold() for code in LANGUAGES
        }


def test_every_name_finds_its_language_alone() -> None:
    for names in (*NAMES.values(), NATIVE_NAMES, LANGUAGES, {code: code for code in LANGUAGES}):
        for code, name in names.items():
            assert find_language(name) == find_language(name.upper()) == find_language(f" {name.lower()} ") == code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("espanol", "es"),
        ("Tieng Viet", "vi"),
        ("việt", "vi"),
        ("ingilizce", "en"),
        ("EN-US", "en"),
        ("pt_BR", "pt"),
        ("zh-Hans", "zh"),
        ("iw", "he"),
    ],
)
def test_other_spellings(given: str, code: str) -> None:
    assert find_language(given) == code


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("Vietnamse", "did you mean Vietnamese?"),
        ("klingon", "choose one of English"),
        ("alleman", "did you mean German?"),
        ("zh-TW", "choose one of English, Chinese"),
        ("sv", "choose one of"),
        ("", "choose one of"),
        ("x" * 5000, "choose one of"),
    ],
)
def test_unknown_ones(given: str, said: str) -> None:
    with pytest.raises(InputError, match="none of PolyLM's 18 languages") as raised:
        find_language(given)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 400


def test_letters_of_a_language_are_of_its_scripts() -> None:
    for code, text in TRANSLATIONS.items():
        assert {script(letter) for letter in text if letter.isalpha()} <= set(SCRIPTS[code])
    assert script("3") == script(".") == ""
