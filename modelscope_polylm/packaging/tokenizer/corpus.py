"""The built-in corpus on which a converted tokenizer is compared with SentencePiece, the same on every run."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

from modelscope_polylm.packaging.files import bundled_text
from modelscope_polylm.text.languages import LANGUAGES

SEED = 20230706
NATURAL = "natural"
SPACES = (*"\t\n\r\v\f\x85\xa0\xad\u2003\u200b\u200d\u2028\u2581\u3000\ufeff", "\r\n", "\n\n", "\t\t", " \u2581")
SPACES += (*(" " * count for count in (1, 2, 3, 4, 8, 17)), *("\n" * count for count in (1, 3)))
EMOJI = [
    "😀",
    "🎉",
    "❤️",
    "👍🏽",
    "👩\u200d💻",
    "👨\u200d👩\u200d👧\u200d👦",
    "🏳️\u200d🌈",
    "🇨🇳",
    "🇩🇪",
    "1️⃣",
    "🧑🏿\u200d🚀",
    "☺",
    "✅",
    "🫠",
    "🀄",
    "©️",
]
MARKS = [*map(chr, range(0x300, 0x370)), *"\u05b0\u05bc\u064b\u0651\u0655\u094d\u0e31\u0e48\u20d7\u3099\u309a\ufe0f"]
BASES = (*"aeiouAEINOÅçÇsS ﬁ①Ａｶ가각각かハא日αωΩяйन\u3131", "\u1100\u1161", "\uac00\u11a8", "\uff76\uff9e", "q\u0323")
NAMES = [
    "</s>",
    "<s>",
    "<unk>",
    "<pad>",
    "<mask>",
    "<|user|>",
    "<|assistant|>",
    "<|endoftext|>",
    "<0x0A>",
    "<0x00>",
    "<0xE4>",
    "<0xFF>",
]
NEAR_NAMES = ["<s", "/s>", "<<s>>", "</s></s>", "▁<s>", "[INST]", "<0x", "0x0A>", "<0x0a>", "�", "⁇"]
REPEATED = [*"=-.#*_~ aoh0\n哈ㅋ\u0e46\u2581…", "ab", "aba", "ha", "12", "=-"]
NUMBER_FORMATS = ["{}", "{:,}", " {}", "-{}", "{}%", "€{}", "0x{:X}", "{:.3e}", "v{}.0", "{}\n", "第{}章", "{}km²"]
# First and last code points of blocks that an ordinary vocabulary hardly covers.
BLOCKS = [
    *((0x0250, 0x036F), (0x0530, 0x058F), (0x0900, 0x0DFF), (0x0F00, 0x0FFF), (0x1200, 0x137F), (0x1780, 0x17FF)),
    *((0x2190, 0x23FF), (0x2500, 0x27BF), (0x3200, 0x33FF), (0xA000, 0xA48C), (0xE000, 0xE0FF), (0xFB00, 0xFEFC)),
    *((0xFF01, 0xFFEF), (0x12000, 0x12399), (0x13000, 0x1342E), (0x1D400, 0x1D7FF), (0x1F100, 0x1F2FF)),
    *((0x20000, 0x2A6DF), (0xE0020, 0xE007F)),
]
# First and last code points of ranges, and how often random text draws from each.
RANDOM_RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x1, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF)]
RANDOM_WEIGHTS = [4, 2, 8, 2, 3, 1]


def corpus_strings() -> Iterator[tuple[str, str]]:
    """Yield kind and text of more than 20,000 different strings; the kinds of natural text begin with 'natural'."""
    seen: set[str] = set()
    for kind, text in _all_strings():
        if text not in seen:
            seen.add(text)
            yield kind, text


@functools.cache
def sentences() -> dict[str, list[str]]:
    """Twenty everyday sentences in each language, by ISO 639-1 code; sentences at the same index mean the same."""
    found: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for line in bundled_text("sentences.tsv").splitlines():
        language, _, sentence = line.partition("\t")
        found[language].append(sentence)
    return found


@functools.cache
def code_snippets() -> list[str]:
    """Source code in several programming languages."""
    return bundled_text("code.txt").split("%%\n")


def _all_strings() -> Iterator[tuple[str, str]]:
    for language in LANGUAGES:
        for text in _natural(sentences()[language], random.Random(f"{SEED} {language}")):
            yield f"{NATURAL} {language}", text
    for kind, count, generate in GENERATORS:
        rng = random.Random(f"{SEED} {kind}")
        for _ in range(count):
            yield kind, generate(rng)


def _natural(texts: list[str], rng: random.Random) -> Iterator[str]:
    yield from texts
    for separator in (" ", "\n", "\n\n"):
        for _ in range(110):
            yield separator.join(rng.sample(texts, rng.randint(2, 4)))
    for _ in range(110):
        text = rng.choice(texts)
        start, end = sorted(rng.sample(range(len(text) + 1), 2))
        yield text[start:end]


def _words(rng: random.Random, count: int) -> list[str]:
    words = rng.choice(sentences()[rng.choice(tuple(LANGUAGES))]).split()
    return [rng.choice(words)[:12] for _ in range(count)]


def _code(rng: random.Random) -> str:
    lines = rng.choice(code_snippets()).splitlines(keepends=True)
    first = rng.randrange(len(lines))
    return " " * rng.choice((0, 0, 2, 4, 7)) + "".join(lines[first : first + rng.randint(1, 8)])


def _whitespace(rng: random.Random) -> str:
    words = [*_words(rng, rng.randint(0, 4)), ""]
    parts = [rng.choice(SPACES) * rng.choice((0, 1, 1, 2, 5)) + word for word in words]
    return "".join(parts) + rng.choice(("", " ", "\n"))


def _emoji(rng: random.Random) -> str:
    return "".join(rng.choice((*EMOJI, *EMOJI, *_words(rng, 2), " ")) for _ in range(rng.randint(1, 8)))


def _marks(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(1, 6)):
        parts += [rng.choice(BASES), *rng.choices(MARKS, k=rng.choice((0, 1, 1, 2, 3)))]
    return "".join(parts)


def _rare(rng: random.Random) -> str:
    block = rng.choice(BLOCKS)
    rare = "".join(chr(rng.randint(*block)) for _ in range(rng.randint(1, 6)))
    return rng.choice(("", " ")).join([*_words(rng, rng.randint(0, 2)), rare])


def _look_alikes(rng: random.Random) -> str:
    choices = (*NAMES, *NEAR_NAMES, *_words(rng, 1), " ", "\n")
    return rng.choice(("", "", " ")).join(rng.choice(choices) for _ in range(rng.randint(1, 5)))


def _repeats(rng: random.Random) -> str:
    before, after = _words(rng, rng.randint(0, 1)), _words(rng, rng.randint(0, 1))
    return "".join([*before, rng.choice(REPEATED) * rng.randint(1, 70), *after])


def _numbers(rng: random.Random) -> str:
    return rng.choice(NUMBER_FORMATS).format(rng.randint(0, 10 ** rng.randint(1, 15)))


def _random(rng: random.Random) -> str:
    ranges = rng.choices(RANDOM_RANGES, RANDOM_WEIGHTS, k=rng.randint(1, 24))
    return "".join(chr(rng.randint(*span)) for span in ranges)


GENERATORS: list[tuple[str, int, Callable[[random.Random], str]]] = [
    ("code", 2000, _code),
    ("whitespace", 2500, _whitespace),
    ("emoji", 1000, _emoji),
    ("combining marks", 2500, _marks),
    ("rare characters", 1500, _rare),
    ("look-alikes of control tokens", 1500, _look_alikes),
    ("repeated characters", 1000, _repeats),
    ("numbers", 1000, _numbers),
    ("random Unicode", 4500, _random),
]
"""Kind of text, number of strings, and the function that generates one."""
