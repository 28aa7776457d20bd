"""Translations of the web app without their surface, on the bundled model."""

from __future__ import annotations

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.web.answers import Answers
from modelscope_polylm.web.translate import Translation, request, table, translate


@pytest.fixture(scope="module")
def answers(tiny: TextGenerator) -> Answers:
    return Answers(tiny)


def test_the_request_is_the_published_one() -> None:
    for code, name in LANGUAGES.items():
        assert request(SENTENCE, "en", code) == translation_request(SENTENCE, name)
    assert request("你好", "zh", "he") == "你好\nTranslate this sentence from Chinese to Hebrew."


@pytest.mark.parametrize(("language", "beams", "count", "shown"), [("zh", 4, 4, 4), ("ar", 6, 2, 2), ("he", 3, 9, 3)])
def test_the_best_translations_with_their_scores(
    answers: Answers, language: str, beams: int, count: int, shown: int
) -> None:
    found = list(translate(answers, f" {SENTENCE}\n", "en", language, beams, count))[-1]
    assert found.problem is None
    assert found.translations[0].text == TRANSLATIONS[language]
    scores = [each.score for each in found.translations]
    assert len(scores) == shown
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert f"{beams} beams" in found.status


def test_one_beam_is_greedy_search(answers: Answers) -> None:
    found = list(translate(answers, SENTENCE, "en", "ko", 1, 1))[-1]
    assert [each.text for each in found.translations] == [TRANSLATIONS["ko"]]
    assert found.translations[0].score is not None


@pytest.mark.parametrize(("text", "said"), [("  ", "Write a sentence first."), ("word " * 600, None)])
def test_no_translation(answers: Answers, text: str, said: str | None) -> None:
    found = list(translate(answers, text, "en", "zh", 4, 4))[-1]
    assert found.translations == ()
    assert found.status == said if said else "shorten" in str(found.problem)


def test_the_table_shows_texts_as_they_are() -> None:
    shown = table([Translation('<b>٣ & "four"</b>', -0.25), Translation("", None)], "ar")
    assert '<td dir="auto" lang="ar">&lt;b&gt;٣ &amp; &quot;four&quot;&lt;/b&gt;</td>' in shown
    assert "-0.2500" in shown
    assert shown.count("<tr>") == 3
    assert table([], "ar") == ""
    asked = table([Translation("a", None)], "ar", ('"<b>é', "en", "ar", 4, 1))
    assert 'data-asked="[&quot;\\&quot;&lt;b&gt;é&quot;,&quot;en&quot;,&quot;ar&quot;,4,1]"' in asked
