"""What is suspicious about a translation."""

from __future__ import annotations

import pytest

from modelscope_polylm.text.languages import TRANSLATIONS
from modelscope_polylm.translation.quality import problem_of
from modelscope_polylm.translation.segments import Segment


def test_right_translations_are_not_suspicious() -> None:
    for source, text in TRANSLATIONS.items():
        for target, translation in TRANSLATIONS.items():
            if source != target:
                assert problem_of(Segment(text, source, target), translation) is None


@pytest.mark.parametrize(
    ("text", "target", "translation", "problem"),
    [
        ("Rome is big.", "de", " ", "empty"),
        ("Send {name}.", "de", "{name}", "empty"),
        ("Rome is big.", "de", "rome is  Big.", "copied"),
        ("Berlin", "de", "Berlin", None),
        ("Rome is big.", "vi", "Рим большой.", "wrong script"),
        ("Rome is big.", "ar", "Rome is huge.", "wrong script"),
        ("Rome is big.", "ar", "روما OpenAI كبيرة جدا.", None),
        ("Rome is big.", "zh", "罗马很大。", None),
        ("Rome is big and has many old houses, and people.", "de", "Ja.", "too short"),
        ("Rome is big.", "de", "Rom ist groß und groß und groß und groß und groß.", "too long"),
        ("Rome is big and has many old houses, and people.", "zh", "罗马很大，有很多老房子和人。", None),
    ],
)
def test_problems(text: str, target: str, translation: str, problem: str | None) -> None:
    kept = ("{name}",) if "{name}" in text else ()
    assert problem_of(Segment(text, "en", target, kept), translation) == problem


def test_an_answer_that_was_cut_off() -> None:
    assert problem_of(Segment("Rome is big.", "en", "de"), "Rom ist", "length") == "cut off"
