"""One sentence in PolyLM's 18 languages, and how the published examples ask for its translation."""

from __future__ import annotations

SENTENCE = "Beijing is the capital of China."
LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "ru": "Russian",
    "es": "Spanish",
    "de": "German",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "ja": "Japanese",
    "vi": "Vietnamese",
    "id": "Indonesian",
    "pl": "Polish",
    "nl": "Dutch",
    "ar": "Arabic",
    "tr": "Turkish",
    "th": "Thai",
    "he": "Hebrew",
    "ko": "Korean",
}
"""English name by ISO 639-1 code."""

TRANSLATIONS = {
    "en": "Beijing is the capital of China.",
    "zh": "北京是中国的首都。",
    "ru": "Пекин — столица Китая.",
    "es": "Pekín es la capital de China.",
    "de": "Peking ist die Hauptstadt von China.",
    "fr": "Pékin est la capitale de la Chine.",
    "it": "Pechino è la capitale della Cina.",
    "pt": "Pequim é a capital da China.",
    "ja": "北京は中国の首都です。",
    "vi": "Bắc Kinh là thủ đô của Trung Quốc.",
    "id": "Beijing adalah ibu kota Tiongkok.",
    "pl": "Pekin to stolica Chin.",
    "nl": "Peking is de hoofdstad van China.",
    "ar": "بكين هي عاصمة الصين.",
    "tr": "Pekin, Çin'in başkentidir.",
    "th": "ปักกิ่งเป็นเมืองหลวงของจีน",
    "he": "בייג'ינג היא בירת סין.",
    "ko": "베이징은 중국의 수도입니다.",
}
"""SENTENCE by ISO 639-1 code."""


def translation_request(sentence: str, language: str, source: str = "English") -> str:
    """Ask for a translation as the published examples do, by the English names of the two languages."""
    return f"{sentence}\nTranslate this sentence from {source} to {language}."
