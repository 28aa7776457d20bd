"""The built-in corpus on which a converted tokenizer is compared with SentencePiece, the same on every run."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from importlib import resources

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


Maker = Callable[[random.Random], str]

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
# First and last code point of blocks of which an ordinary vocabulary holds little.
BLOCKS = [
    *((0x0250, 0x036F), (0x0530, 0x058F), (0x0900, 0x0DFF), (0x0F00, 0x0FFF), (0x1200, 0x137F), (0x1780, 0x17FF)),
    *((0x2190, 0x23FF), (0x2500, 0x27BF), (0x3200, 0x33FF), (0xA000, 0xA48C), (0xE000, 0xE0FF), (0xFB00, 0xFEFC)),
    *((0xFF01, 0xFFEF), (0x12000, 0x12399), (0x13000, 0x1342E), (0x1D400, 0x1D7FF), (0x1F100, 0x1F2FF)),
    *((0x20000, 0x2A6DF), (0xE0020, 0xE007F)),
]
# First and last code point of ranges, and how often random text takes one of them.
RANDOM_RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x1, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF)]
RANDOM_WEIGHTS = [4, 2, 8, 2, 3, 1]


def _words(source: random.Random, count: int) -> list[str]:
    words = source.choice(sentences()[source.choice(LANGUAGES)]).split()
    return [source.choice(words)[:12] for _ in range(count)]


def _code(source: random.Random) -> str:
    lines = source.choice(code_snippets()).splitlines(keepends=True)
    first = source.randrange(len(lines))
    return " " * source.choice((0, 0, 2, 4, 7)) + "".join(lines[first : first + source.randint(1, 8)])


def _whitespace(source: random.Random) -> str:
    words = [*_words(source, source.randint(0, 4)), ""]
    parts = [source.choice(SPACES) * source.choice((0, 1, 1, 2, 5)) + word for word in words]
    return "".join(parts) + source.choice(("", " ", "\n"))


def _emoji(source: random.Random) -> str:
    return "".join(source.choice((*EMOJI, *EMOJI, *_words(source, 2), " ")) for _ in range(source.randint(1, 8)))


def _marks(source: random.Random) -> str:
    parts = []
    for _ in range(source.randint(1, 6)):
        parts += [source.choice(BASES), *source.choices(MARKS, k=source.choice((0, 1, 1, 2, 3)))]
    return "".join(parts)


def _rare(source: random.Random) -> str:
    block = source.choice(BLOCKS)
    rare = "".join(chr(source.randint(*block)) for _ in range(source.randint(1, 6)))
    return source.choice(("", " ")).join([*_words(source, source.randint(0, 2)), rare])


def _look_alikes(source: random.Random) -> str:
    choices = (*NAMES, *NEAR_NAMES, *_words(source, 1), " ", "\n")
    return source.choice(("", "", " ")).join(source.choice(choices) for _ in range(source.randint(1, 5)))


def _repeats(source: random.Random) -> str:
    before, after = _words(source, source.randint(0, 1)), _words(source, source.randint(0, 1))
    return "".join([*before, source.choice(REPEATED) * source.randint(1, 70), *after])


def _numbers(source: random.Random) -> str:
    return source.choice(NUMBER_FORMATS).format(source.randint(0, 10 ** source.randint(1, 15)))


def _random(source: random.Random) -> str:
    ranges = source.choices(RANDOM_RANGES, RANDOM_WEIGHTS, k=source.randint(1, 24))
    return "".join(chr(source.randint(*span)) for span in ranges)


MAKERS: list[tuple[str, int, Maker]] = [
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
"""Kind of text, how many to make, and what makes one."""


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
    text: str = resources.files("modelscope_polylm.packaging").joinpath("data", name).read_text(encoding="utf-8")
    return text
