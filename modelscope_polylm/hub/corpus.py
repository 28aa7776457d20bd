"""The built-in corpus on which a converted tokenizer is compared with SentencePiece, the same on every run."""

from __future__ import annotations

import random
from collections.abc import Iterator

from modelscope_polylm.hub.built_in_texts import LANGUAGES, sentences
from modelscope_polylm.hub.corpus_makers import MAKERS

SEED = 20230706
NATURAL = "natural"


def proof_strings() -> Iterator[tuple[str, str]]:
    """Yield kind and text of more than 20,000 different strings; the kinds of natural text begin with 'natural'."""
    seen: set[str] = set()
    for kind, text in _all_strings():
        if text not in seen:
            seen.add(text)
            yield kind, text


def _all_strings() -> Iterator[tuple[str, str]]:
    for language in LANGUAGES:
        for text in _natural(sentences()[language], random.Random(f"{SEED} {language}")):
            yield f"{NATURAL} {language}", text
    for kind, count, make in MAKERS:
        source = random.Random(f"{SEED} {kind}")
        for _ in range(count):
            yield kind, make(source)


def _natural(texts: list[str], source: random.Random) -> Iterator[str]:
    yield from texts
    for joint in (" ", "\n", "\n\n"):
        for _ in range(110):
            yield joint.join(source.sample(texts, source.randint(2, 4)))
    for _ in range(110):
        text = source.choice(texts)
        start, end = sorted(source.sample(range(len(text) + 1), 2))
        yield text[start:end]
