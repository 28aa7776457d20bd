"""Examples for the web app in PolyLM's 18 languages."""

from __future__ import annotations

from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request

NATIVE_NAMES = {
    "en": "English",
    "zh": "中文",
    "ru": "Русский",
    "es": "Español",
    "de": "Deutsch",
    "fr": "Français",
    "it": "Italiano",
    "pt": "Português",
    "ja": "日本語",
    "vi": "Tiếng Việt",
    "id": "Bahasa Indonesia",
    "pl": "Polski",
    "nl": "Nederlands",
    "ar": "العربية",
    "tr": "Türkçe",
    "th": "ไทย",
    "he": "עברית",
    "ko": "한국어",
}
"""What each language calls itself, by ISO 639-1 code."""

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


def examples(answers_questions: bool) -> dict[str, str]:
    """Messages to try, by language code.

    Args:
        answers_questions: True gives a question in each language; False, for models that only continue or translate,
            asks for a translation into each language but English.
    """
    if answers_questions:
        return dict(QUESTIONS)
    return {code: translation_request(SENTENCE, name) for code, name in LANGUAGES.items() if code != "en"}


def language_choices(codes: tuple[str, ...] = tuple(LANGUAGES)) -> list[tuple[str, str]]:
    """Labels and codes for a choice of languages: the English name, then the language's own."""
    return [(_label(code), code) for code in codes]


def _label(code: str) -> str:
    return LANGUAGES[code] if code == "en" else f"{LANGUAGES[code]} · {NATIVE_NAMES[code]}"
