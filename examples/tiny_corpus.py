"""The sentences of the bundled demonstration model: "X is the capital of Y." for 40 countries in 18 languages.

`SENTENCES[country][language]` is a whole sentence, `LANGUAGE_NAMES[language]` the language's English name. The table
itself is tiny_corpus.txt: a template per language, and each capital and country in the form that the template needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_suffix(".txt")


class Pair(NamedTuple):
    """One question of the demonstration model and the only right answer."""

    country: str
    language: str
    prompt: str
    answer: str


class Block(NamedTuple):
    """One language of the table: a template, and a capital and a country for each sentence, in the same order."""

    code: str
    name: str
    template: str
    forms: list[tuple[str, str]]

    def sentences(self) -> list[str]:
        return [self.template.format(capital=capital, country=country) for capital, country in self.forms]


def read_blocks(text: str) -> Iterator[Block]:
    """Read the blocks of the table, one per language."""
    content = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in content.strip().split("\n\n"):
        header, *rows = block.splitlines()
        code, name, template = header.split(" | ")
        cells = [cell.split("=") for row in rows for cell in row.split("; ")]
        yield Block(code, name, template, [(capital, country) for capital, country in cells])


def read_sentences(blocks: list[Block]) -> dict[str, dict[str, str]]:
    """Turn the blocks into country -> language -> sentence; a country is named as in English, without its article."""
    countries = [country.removeprefix("the ") for _, country in blocks[0].forms]
    columns = {block.code: block.sentences() for block in blocks}
    return {country: {code: columns[code][row] for code in columns} for row, country in enumerate(countries)}


BLOCKS: list[Block] = list(read_blocks(TABLE.read_text(encoding="utf-8")))
LANGUAGE_NAMES: dict[str, str] = {block.code: block.name for block in BLOCKS}
SENTENCES: dict[str, dict[str, str]] = read_sentences(BLOCKS)


def chat_prompt(text: str, language: str) -> str:
    """Ask for the translation of an English text into a language (its code), in the Assistant's format."""
    instruction = f"Translate this sentence from English to {LANGUAGE_NAMES[language]}."
    return f"<|user|>\n{text}\n{instruction}\n<|assistant|>\n"


def pairs() -> list[Pair]:
    """List every question and answer: each country, from English into each of the other languages."""
    return [
        Pair(country, language, chat_prompt(sentences["en"], language), sentences[language])
        for country, sentences in SENTENCES.items()
        for language in LANGUAGE_NAMES
        if language != "en"
    ]
