"""The texts that come with the package: sentences in PolyLM's 18 languages, pieces of code, the licence."""

from __future__ import annotations

import functools
from importlib import resources

LANGUAGES = ("zh", "en", "ru", "es", "de", "fr", "it", "pt", "ja", "vi", "id", "pl", "nl", "ar", "tr", "th", "he", "ko")


@functools.cache
def sentences() -> dict[str, list[str]]:
    """Twenty sentences of everyday text for each language; those of one number mean the same."""
    found: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for line in read_data("sentences.tsv").splitlines():
        language, _, sentence = line.partition("\t")
        found[language].append(sentence)
    return found


@functools.cache
def code_snippets() -> list[str]:
    """Pieces of code in several languages."""
    return read_data("code.txt").split("%%\n")


def read_data(name: str) -> str:
    """The text of a file in the folder `data`."""
    text: str = resources.files("modelscope_polylm.hub").joinpath("data", name).read_text(encoding="utf-8")
    return text
