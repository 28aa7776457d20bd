"""Compares a tokenizer.json with SentencePiece, string by string."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.packaging.tokenizer.corpus import NATURAL, corpus_strings
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

BATCH_SIZE = 1000
# Two segmentations of a text are equally probable if their log probabilities differ by less than this share.
TOLERANCE = 1e-5


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
