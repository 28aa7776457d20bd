"""The filters in all of PolyLM's languages, above all in MultiAlpaca's eleven."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from modelscope_polylm.self_instruct.filters import THRESHOLDS, TaskFilter, rouge_l
from modelscope_polylm.self_instruct.tasks import Dropped, Task
from modelscope_polylm.text.languages import LANGUAGES, words
from modelscope_polylm.training.sources import MULTIALPACA_LANGUAGES

INSTRUCTIONS = {
    "ar": (
        "اكتب قصة قصيرة عن قطة تعيش في مدينة كبيرة وتبحث عن صديق",
        "اكتب قصة قصيرة عن كلب يعيش في مدينة كبيرة وتبحث عن صديق",
        "ما هي فوائد شرب الماء صباحًا قبل الإفطار؟",
    ),
    "de": (
        "Schreibe eine kurze Geschichte über eine Katze, die in einer großen Stadt lebt.",
        "Schreibe eine kurze Geschichte über einen Hund, der in einer großen Stadt lebt.",
        "Welche Vorteile hat es, morgens ein Glas Wasser zu trinken?",
    ),
    "es": (
        "Escribe un cuento corto sobre un gato que vive en una ciudad grande.",
        "Escribe un cuento corto sobre un perro que vive en una ciudad grande.",
        "¿Qué ventajas tiene beber un vaso de agua por la mañana?",
    ),
    "fr": (
        "Écris une courte histoire sur un chat qui vit dans une grande ville.",
        "Écris une courte histoire sur un chien qui vit dans une grande ville.",
        "Quels sont les avantages de boire un verre d'eau le matin ?",
    ),
    "id": (
        "Tulislah cerita pendek tentang seekor kucing yang tinggal di kota besar.",
        "Tulislah cerita pendek tentang seekor anjing yang tinggal di kota besar.",
        "Apa manfaat minum segelas air putih pada pagi hari?",
    ),
    "ja": (
        "大きな町に住んでいる猫についての短い物語を書いてください。",
        "大きな町に住んでいる犬についての短い物語を書いてください。",
        "朝にコップ一杯の水を飲むとどのような利点がありますか。",
    ),
    "ko": (
        "큰 도시에 사는 고양이에 대한 짧은 이야기를 하나 써 주세요.",
        "큰 도시에 사는 강아지에 대한 짧은 이야기를 하나 써 주세요.",
        "아침에 물 한 잔을 마시면 어떤 점이 좋은가요?",
    ),
    "pt": (
        "Escreva um conto curto sobre um gato que vive em uma cidade grande.",
        "Escreva um conto curto sobre um cachorro que vive em uma cidade grande.",
        "Quais são as vantagens de beber um copo de água pela manhã?",
    ),
    "ru": (
        "Напишите короткий рассказ о кошке, которая живёт в большом городе.",
        "Напишите короткий рассказ о собаке, которая живёт в большом городе.",
        "Чем полезен стакан воды, выпитый утром до завтрака?",
    ),
    "th": (
        "เขียนเรื่องสั้นเกี่ยวกับแมวที่อาศัยอยู่ในเมืองใหญ่",
        "เขียนเรื่องสั้นเกี่ยวกับสุนัขที่อาศัยอยู่ในเมืองใหญ่",
        "การดื่มน้ำหนึ่งแก้วในตอนเช้ามีประโยชน์อย่างไร",
    ),
    "vi": (
        "Hãy viết một câu chuyện ngắn về con mèo sống ở thành phố lớn.",
        "Hãy viết một câu chuyện ngắn về con chó sống ở thành phố lớn.",
        "Uống một cốc nước vào buổi sáng có lợi ích gì?",
    ),
    "en": (
        "Write a short story about a cat that lives in a large city.",
        "Write a short story about a dog that lives in a large city.",
        "What is good about drinking a glass of water in the morning?",
    ),
    "zh": (
        "请写一个关于住在大城市里的猫的短篇故事。",
        "请写一个关于住在大城市里的狗的短篇故事。",
        "早上喝一杯水有什么好处?",
    ),
    "it": (
        "Scrivi un breve racconto su un gatto che vive in una grande città.",
        "Scrivi un breve racconto su un cane che vive in una grande città.",
        "Quali vantaggi ha bere un bicchiere d'acqua al mattino?",
    ),
    "pl": (
        "Napisz krótkie opowiadanie o kocie, który mieszka w dużym mieście.",
        "Napisz krótkie opowiadanie o psie, który mieszka w dużym mieście.",
        "Jakie korzyści daje picie szklanki wody rano?",
    ),
    "nl": (
        "Schrijf een kort verhaal over een kat die in een grote stad woont.",
        "Schrijf een kort verhaal over een hond die in een grote stad woont.",
        "Wat zijn de voordelen van een glas water in de ochtend?",
    ),
    "tr": (
        "Büyük bir şehirde yaşayan bir kedi hakkında kısa bir hikâye yaz.",
        "Büyük bir şehirde yaşayan bir köpek hakkında kısa bir hikâye yaz.",
        "Sabahları bir bardak su içmenin faydaları nelerdir?",
    ),
    "he": (
        "כתוב סיפור קצר על חתול שגר בעיר גדולה ומחפש חבר",
        "כתוב סיפור קצר על כלב שגר בעיר גדולה ומחפש חבר",
        "מהם היתרונות של שתיית כוס מים בבוקר?",
    ),
}
"""Of each language an instruction, nearly the same one, and another one."""
SIMILAR = "resembles an earlier task"


def task(instruction: str, context: str = "", output: str = "…") -> Task:
    return Task(instruction, context, output)


def reason(found: Task | Dropped) -> str | None:
    return found.reason if isinstance(found, Dropped) else None


def test_there_are_texts_of_all_languages() -> None:
    assert set(INSTRUCTIONS) == set(LANGUAGES) == set(THRESHOLDS)
    assert set(MULTIALPACA_LANGUAGES) <= set(INSTRUCTIONS)


@pytest.mark.parametrize("language", INSTRUCTIONS)
def test_same_and_nearly_same_instructions_are_found_and_others_are_kept(language: str) -> None:
    first, near, other = INSTRUCTIONS[language]
    filter = TaskFilter(language)
    assert filter.checked(task(first)) == task(first)
    filter.keep(task(first))
    assert reason(filter.checked(task(first))) == SIMILAR
    assert reason(filter.checked(task(f"  {first.upper()} "))) == SIMILAR
    assert reason(filter.checked(task(near))) == SIMILAR
    assert filter.checked(task(other)) == task(other)


def test_every_language_is_told_from_every_other() -> None:
    texts = [(language, text) for language, group in INSTRUCTIONS.items() for text in group]
    for language, (own, text) in itertools.product(LANGUAGES, texts):
        found = reason(TaskFilter(language).checked(task(text)))
        assert found == (None if language == own else f"in another language ({own})"), (language, text)


def test_a_text_that_could_be_of_any_language_is_kept() -> None:
    assert reason(TaskFilter("th").checked(task("2 + 2 = ?"))) is None
    assert reason(TaskFilter("de").checked(task("Was ist 2 + 2?"))) is None


def test_a_text_of_no_known_script_is_dropped() -> None:
    greek = task("Γράψε μια σύντομη ιστορία για μια γάτα.")
    assert reason(TaskFilter("de").checked(greek)) == "in another language"


def test_words_of_scripts_without_spaces() -> None:
    assert words("เขียนเรื่องสั้น") == ["เขียน", "เรื่อง", "สั้น"]
    assert words("短い物語を書く。") == ["短い", "物語", "を", "書く", "。"]
    assert words("Straße, ﬁne Ｔｅｘｔ") == ["strasse", ",", "fine", "text"]
    assert words(" \n") == []


def test_rouge_l_by_hand() -> None:
    assert rouge_l(words("the cat sat on the mat"), words("the cat lay on a mat")) == pytest.approx(4 / 6)
    assert rouge_l(["a", "b", "c"], ["c", "b", "a", "x", "y"]) == pytest.approx(2 * 1 / 8)
    assert rouge_l([], []) == rouge_l(["a"], []) == 0.0


def test_similarity_of_exactly_the_threshold_is_too_much() -> None:
    filter = TaskFilter("de")
    filter.keep(task("a b c d e f g x y z"))
    assert reason(filter.checked(task("a b c d e f g u v w"))) == SIMILAR  # 7 of 10 and 10 words
    assert reason(filter.checked(task("a b c d e f t u v w"))) != SIMILAR


@pytest.mark.parametrize(("language", "most"), [("de", 0.5), ("th", 0.5), ("ko", 0.3), ("vi", 0.3), ("ar", 0.2)])
def test_an_input_that_repeats_the_instruction(language: str, most: float) -> None:
    assert THRESHOLDS[language].repetition == most
    instruction = [f"{number}" for number in range(10)]
    allowed, too_much = (
        " ".join(instruction[:count] + ["x"] * (10 - count)) for count in (round(most * 10), round(most * 10) + 1)
    )
    filter = TaskFilter(language)
    assert reason(filter.checked(task(" ".join(instruction), allowed))) is None
    assert reason(filter.checked(task(" ".join(instruction), too_much))) == "the input repeats the instruction"


def test_an_input_that_stands_in_the_instruction_becomes_empty() -> None:
    instruction = "Übersetze den Satz „Guten Morgen“ ins Englische."
    assert TaskFilter("de").checked(task(instruction, "Guten Morgen")) == task(instruction)


@pytest.mark.parametrize("link", ["https://example.org", "HTTP://example.org/x", "siehe www.example.org"])
def test_links_are_dropped_wherever_they_are(link: str) -> None:
    filter = TaskFilter("de")
    for bad in (task(f"Fasse {link} zusammen."), task("Fasse zusammen.", link), task("Nenne etwas.", "", link)):
        assert reason(filter.checked(bad)) == "a link"
    assert reason(filter.checked(task("Was bedeutet http?"))) is None


def test_a_pool_of_100_000_stays_usable() -> None:
    choice = random.Random(0)
    vocabulary = [f"w{number}" for number in range(20_000)]
    weights = [1 / (rank + 1) for rank in range(len(vocabulary))]  # Zipf's law, as in texts
    drawn = iter(choice.choices(vocabulary, weights, k=25 * 100_020))
    tasks = [task(" ".join(itertools.islice(drawn, choice.randint(6, 25)))) for _ in range(100_020)]
    filter = TaskFilter("de")
    for each in tasks[:100_000]:
        filter.keep(each)
    start = time.perf_counter()
    reasons = [reason(filter.checked(each)) for each in tasks[100_000:]]
    seconds = (time.perf_counter() - start) / 20
    assert SIMILAR not in reasons
    assert reason(filter.checked(tasks[50_000])) == SIMILAR
    assert seconds < 0.3, f"{seconds:.3f} s for each new task"
    print(f"{seconds * 1000:.1f} ms for each new task")
