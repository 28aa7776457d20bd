"""Translations of the web app without their surface, on the bundled model."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS
from modelscope_polylm.web.answers import Answers, StopSign
from modelscope_polylm.web.translate import DETECT, Translation, Translations, TranslationView
from modelscope_polylm.web.words import Words


@pytest.fixture(scope="module")
def answers(tiny: TextGenerator) -> Answers:
    return Answers(tiny)


def translate(answers: Answers, *given: Any, language: str = "en") -> list[TranslationView]:
    return list(Translations(answers, Words(language)).translate(*given, StopSign()))


@pytest.mark.parametrize(("language", "beams", "count", "shown"), [("zh", 4, 4, 4), ("ar", 6, 2, 2), ("he", 3, 9, 3)])
def test_the_best_translations_with_their_scores(
    answers: Answers, language: str, beams: int, count: int, shown: int
) -> None:
    found = translate(answers, f" {SENTENCE}\n", "en", language, beams, count)[-1]
    assert found.problem is None
    assert found.translations[0].text == TRANSLATIONS[language]
    scores = [each.score for each in found.translations]
    assert len(scores) == shown
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert f"{beams} beams" in found.status


def test_one_beam_is_greedy_search(answers: Answers) -> None:
    found = translate(answers, SENTENCE, "en", "ko", 1, 1)[-1]
    assert [each.text for each in found.translations] == [TRANSLATIONS["ko"]]
    assert found.translations[0].score is not None


def test_several_sentences_and_one_that_is_longer_than_the_context(answers: Answers) -> None:
    text = f"{SENTENCE} <b>Rome is the capital of Italy.</b>\n\n{'word ' * 600}"
    found = translate(answers, text, "en", "ko", 4, 2)[-1]
    first = "베이징은 중국의 수도입니다. <b>로마는 이탈리아의 수도입니다.</b>\n\n"
    assert [each.text.startswith(first) for each in found.translations] == [True, False]
    assert "to be looked at: " in found.status


@pytest.mark.parametrize(
    ("text", "languages", "said"),
    [("  ", ("en", "zh"), "Write a sentence first."), (SENTENCE, ("en", "en"), "both English")],
)
def test_no_translation(answers: Answers, text: str, languages: tuple[str, str], said: str) -> None:
    found = translate(answers, text, *languages, 4, 4)[-1]
    assert found.translations == ()
    assert said in (found.problem or found.status)


@pytest.mark.parametrize(
    ("language", "said"),
    [("en", "from English, as detected"), ("zh", "检测到的源语言：英语"), ("vi", "phát hiện ngôn ngữ: Tiếng Anh")],
)
def test_the_language_is_detected_and_told(answers: Answers, language: str, said: str) -> None:
    found = translate(answers, SENTENCE, DETECT, "de", 4, 1, language=language)[-1]
    assert (found.translations[0].text, found.source) == (TRANSLATIONS["de"], "en")
    assert found.status.endswith(said)
    assert said not in translate(answers, SENTENCE, "en", "de", 4, 1, language=language)[-1].status
    assert translate(answers, "12345", DETECT, "de", 4, 1)[-1].problem


def test_stop(answers: Answers) -> None:
    sign, views = StopSign(), []
    for view in Translations(answers, Words()).translate("word " * 400, "en", "de", 16, 1, sign):
        views.append(view)
        sign.raised = True
    assert [view.busy for view in views] == [True] * (len(views) - 1) + [False]
    assert (views[-1].translations, views[-1].status[:13]) == ((), "Stopped after")


def test_the_place_in_the_queue(answers: Answers) -> None:
    long = {"min_new_tokens": 300, "max_new_tokens": 300}
    options = answers.generator.options(long)
    prompt = answers.generator.reader.read("Tell me a story.", options, chat=True)
    with (
        contextlib.closing(answers.stream(prompt, options)) as first,
        contextlib.closing(Translations(answers, Words()).translate(SENTENCE, "en", "de", 4, 1, StopSign())) as views,
    ):
        next(first)
        assert next(views).status.startswith("place 1 in the queue, ")


def test_the_table_shows_texts_as_they_are(answers: Answers) -> None:
    def table(found: list[Translation], *more: Any) -> str:
        return Translations(answers, Words("vi")).table(TranslationView(found, "en"), "ar", *more)

    shown = table([Translation('<b>٣ & "four"</b>', -0.25), Translation("", None)])
    assert '<td dir="auto" lang="ar">&lt;b&gt;٣ &amp; &quot;four&quot;&lt;/b&gt;</td>' in shown
    assert "-0.2500" in shown
    assert shown.count("<tr>") == 3
    assert "<th>Bản dịch</th>" in shown
    assert 'data-source="en"' in shown
    assert table([]) == ""
    asked = table([Translation("a", None)], ('"<b>é', "en", "ar", 4, 1))
    assert 'data-asked="[&quot;\\&quot;&lt;b&gt;é&quot;,&quot;en&quot;,&quot;ar&quot;,4,1]"' in asked
