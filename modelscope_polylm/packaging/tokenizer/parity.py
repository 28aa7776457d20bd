"""Compares a tokenizer.json with SentencePiece, string by string, on a built-in corpus, the same on every run."""

from __future__ import annotations

import collections
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.packaging.files import bundled_text
from modelscope_polylm.text.languages import LANGUAGES
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

BATCH_SIZE = 1000
# Two segmentations of a text are equally probable if their log probabilities differ by less than this share.
TOLERANCE = 1e-5
SEED = 20230706
"""Of the corpus."""
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


@dataclass(frozen=True)
class Difference:
    """A text that the two tokenizers treat differently.

    Attributes:
        kind: of the text, as the corpus names it.
        text: what was encoded and decoded again.
        expected: SentencePiece's token ids, or its decoded text.
        found: the same of the tokenizer.json.
        is_rounding: whether the two segmentations are equally probable except for rounding.
    """

    kind: str
    text: str
    expected: list[int] | str
    found: list[int] | str
    is_rounding: bool = False

    def __str__(self) -> str:
        what = "ids" if isinstance(self.expected, list) else "decoded text"
        return f"{self.kind}: {self.text!r}: {what} {self.found!r}, but SentencePiece gives {self.expected!r}"


@dataclass
class ParityReport:
    """The outcome of a comparison.

    Attributes:
        compared: number of strings by kind.
        differences: the strings that came out differently.
    """

    compared: collections.Counter[str] = field(default_factory=collections.Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of strings compared."""
        return self.compared.total()

    @property
    def faults(self) -> list[Difference]:
        """The differences that are more than rounding."""
        return [difference for difference in self.differences if not difference.is_rounding]

    @property
    def natural_faults(self) -> list[Difference]:
        """The faults in natural text."""
        return [difference for difference in self.faults if difference.kind.startswith(NATURAL)]

    def __str__(self) -> str:
        start = "tokenizer.json gives SentencePiece's ids and text for "
        if not self.differences:
            return f"{start}all of {self.total:,} strings."
        faults, equal = len(self.faults), self.total - len({difference.text for difference in self.differences})
        parts = [f"{faults} differ"] if faults else []
        if rounding := len(self.differences) - faults:
            parts.append(f"{rounding} are segmented differently with the same probability except for rounding")
        return f"{start}{equal:,} of {self.total:,} strings; {', '.join(parts)}."


def compare_tokenizers(
    tokenizer: PolyLMTokenizer, converted: Any, strings: Iterable[tuple[str, str]] | None = None
) -> ParityReport:
    """Encode and decode strings with both tokenizers.

    Args:
        tokenizer: the reference, SentencePiece.
        converted: a `tokenizers.Tokenizer`; its `encode_special_tokens` is set, so that text is only text.
        strings: kind and text of each string; the built-in corpus if None.
    """
    converted.encode_special_tokens = True
    report = ParityReport()
    for batch in _batches(corpus_strings() if strings is None else strings):
        report.compared.update(kind for kind, _ in batch)
        report.differences += _differences(tokenizer, converted, batch)
    return report


def load_converted(content: str) -> Any:
    """Load a `tokenizers.Tokenizer` from the text of a tokenizer.json. Raises SnapshotError for any other text."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the library raises plain Exceptions
        raise SnapshotError(f"tokenizer.json cannot be loaded: {error}. Package the snapshot again.") from error


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


def _batches(strings: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(strings)
    while batch := list(itertools.islice(iterator, BATCH_SIZE)):
        yield batch


def _differences(tokenizer: PolyLMTokenizer, converted: Any, batch: Sequence[tuple[str, str]]) -> Iterator[Difference]:
    encodings = converted.encode_batch([text for _, text in batch], add_special_tokens=False)
    expected = [tokenizer.encode(text) for _, text in batch]
    decoded = converted.decode_batch(expected, skip_special_tokens=False)
    for (kind, text), ids, encoding, found_text in zip(batch, expected, encodings, decoded, strict=True):
        if encoding.ids != ids:
            yield Difference(kind, text, ids, encoding.ids, _is_rounding(tokenizer, ids, encoding.ids))
        if found_text != (expected_text := tokenizer.decode(ids)):
            yield Difference(kind, text, expected_text, found_text)


def _is_rounding(tokenizer: PolyLMTokenizer, expected: list[int], found: list[int]) -> bool:
    processor = tokenizer.processor
    if "".join(processor.id_to_piece(expected)) != "".join(processor.id_to_piece(found)):
        return False
    expected_score, found_score = sum(processor.get_score(expected)), sum(processor.get_score(found))
    return bool(abs(expected_score - found_score) <= TOLERANCE * max(1.0, abs(expected_score)))


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
