"""Texts as segments, and back."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_polylm.text.languages import LANGUAGES, TRANSLATIONS
from modelscope_polylm.translation.markdown import MARKDOWN_KEPT, MARKDOWN_MARKS
from modelscope_polylm.translation.segments import Segment, SplitText, around_kept, split_text, unwrapped


def texts_of(split: SplitText) -> list[str]:
    return [segment.text for segment in split.segments]


def restored(split: SplitText) -> str:
    return "".join(part.text if isinstance(part, Segment) else part for part in split.parts)


@pytest.mark.parametrize("code", LANGUAGES)
def test_sentences_of_every_language(code: str) -> None:
    sentence = TRANSLATIONS[code]
    gap = "" if code in ("zh", "ja") else " "
    found = texts_of(split_text(gap.join([sentence] * 3), code, "en" if code != "en" else "de"))
    assert found == ([gap.join([sentence] * 3)] if code == "th" else [sentence] * 3)  # Thai has no sentence marks


@pytest.mark.parametrize(
    ("code", "text", "sentences"),
    [
        ("zh", "你好吗？“好的！”他说。", ["你好吗？", "“好的！”", "他说。"]),
        ("ja", "本当？「東京です。」と言った。", ["本当？", "「東京です。」", "と言った。"]),
        (
            "ar",
            "هل القاهرة عاصمة مصر؟ نعم! أحب OpenAI 3.5 جدا.",
            ["هل القاهرة عاصمة مصر؟", "نعم!", "أحب OpenAI 3.5 جدا."],
        ),
        ("th", "สวัสดีครับ\nผมชื่อสมชาย", ["สวัสดีครับ", "ผมชื่อสมชาย"]),
        ("en", "Mr. Smith paid 3.50 at a.m. Why?", ["Mr. Smith paid 3.50 at a.m.", "Why?"]),
        ("de", "Am 3. Oktober ist z.B. Feiertag. Gut.", ["Am 3. Oktober ist z.B. Feiertag.", "Gut."]),
        ("en", "See https://a.org/b.c?d=1. Now go.", ["See https://a.org/b.c?d=1.", "Now go."]),
        ("en", "- One.\n  2) Two\tThree <br> four\r\n\r\n***\n42%", ["One.", "Two", "Three <br> four"]),
        ("en", "<p>All of <b>it</b>.</p> <i>Yes.</i>", ["<p>All of <b>it</b>.", "Yes."]),
        ("en", "{name}, %s, 12:30 &amp; https://a.org", []),
    ],
)
def test_sentences(code: str, text: str, sentences: list[str]) -> None:
    split = split_text(text, code, "vi")
    assert texts_of(split) == sentences
    assert restored(split) == text


@pytest.mark.parametrize(
    "kept",
    [
        "{name}", "{0:.2f}", "{{ user.name }}", "${HOME}", "%s", "%(name)s", "%1$s", "%5.2f", "%%", "%@",
        "<b>", "</b>", '<a href="x.y?z">', "<br/>", "<|user|>", "&nbsp;", "&#160;",
        "https://a.org/b?c=d#e", "www@a.example.org",
    ],
)  # fmt: skip
def test_what_is_kept(kept: str) -> None:
    [segment] = split_text(f"Send it to {kept} today.", "en", "de").segments
    assert segment.kept == (kept,)
    parts = around_kept(segment)
    assert texts_of(parts) == ["Send it to", "today."]
    assert parts.join(["Sende es an", "heute."]) == f"Sende es an {kept} heute."


@pytest.mark.parametrize(
    "text", ["100% sure", "5 % of it", "a < b and b > a", "{a whole sentence in braces}", "it's 3%."]
)
def test_what_is_not_kept(text: str) -> None:
    assert [segment.kept for segment in split_text(text, "en", "de").segments] == [()]


@pytest.mark.parametrize(
    "kept",
    ["`code a`", "``a ` b``", "[", "](https://a.org/b_(c))", '](x.md "Title")', "][ref]", "[^1]", "**", "~~", "\\*"],
)
def test_what_markdown_keeps(kept: str) -> None:
    text = {"[": "Read [this](a.md) now.", "**": "Read **this** now."}.get(kept, f"Read [this {kept} now.")
    [segment] = split_text(text, "en", "de", kept=MARKDOWN_KEPT, marks=MARKDOWN_MARKS).segments
    assert kept in segment.kept


def test_spaces_between_sentences_are_those_of_the_target() -> None:
    assert split_text("北京。东京。", "zh", "en").join(["Beijing.", "Tokyo."]) == "Beijing. Tokyo."
    assert (
        split_text("Beijing. Tokyo.\n Rome.", "en", "ja").join(["北京。", "東京。", "ローマ。"])
        == "北京。東京。\n ローマ。"
    )
    assert split_text("Beijing.  Tokyo.", "en", "de").join(["Peking.", "Tokio."]) == "Peking.  Tokio."


def test_wrapped_lines_become_one() -> None:
    assert unwrapped(["Rome is", "the capital."]) == "Rome is the capital."
    assert unwrapped(["北京是中国", "的首都。"]) == "北京是中国的首都。"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "one two, three four; " * 40),
        ("en", f"see https://a.org/{'x' * 200} and more words " * 3),
        ("zh", "北京是中国的首都，" * 40),
        ("th", "ก" * 300 + "ก\u0e33" * 20),
        ("ar", "مدينة Beijing كبيرة " * 40),
    ],
)
def test_a_sentence_that_is_too_long_is_cut(code: str, text: str) -> None:
    split = split_text(text, code, "vi", fits=lambda part: len(part) <= 60)
    assert restored(split) == text
    assert len(split.segments) > 2
    assert all(len(each.text) <= 60 or each.kept for each in split.segments)
    assert all(f"https://a.org/{'x' * 200}" in each.kept for each in split.segments if each.kept)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["a. ", "<b>", "</b>", "\n", "{x}", "** ", "中。", "%s"])).map("".join),
    st.sampled_from(["en", "zh", "th", "ar"]),
)
def test_no_character_is_lost(text: str, code: str) -> None:
    split = split_text(text, code, "vi", fits=lambda part: len(part) <= 10)
    assert restored(split) == text
    pairs = zip(split.parts, split.parts[1:], strict=False)
    assert all(isinstance(left, str) or isinstance(right, str) for left, right in pairs)


@pytest.mark.parametrize(
    "text", ["x" * 500_000, "<a " * 170_000, "%(" * 250_000, "{" * 500_000, "<!--" * 120_000, "One! Two? " * 50_000]
)
def test_no_pattern_takes_long_over_a_long_line(text: str) -> None:
    start = time.perf_counter()
    split = split_text(text, "en", "de", fits=lambda part: len(part) <= 4000, kept=MARKDOWN_KEPT, marks=MARKDOWN_MARKS)
    assert time.perf_counter() - start < 15
    assert restored(split) == text
