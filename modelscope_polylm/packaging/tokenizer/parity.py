"""Compares a tokenizer.json with SentencePiece, string by string."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.packaging.tokenizer.corpus import NATURAL, proof_strings
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

BATCH = 1000
# Two ways to cut a text count as equally probable when the logarithms of their probabilities are this close.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Difference:
    """A text that the two tokenizers treat differently.

    Attributes:
        kind: kind of the text in the corpus.
        expected, found: what SentencePiece gives and what the tokenizer.json gives: ids, or decoded text.
        is_rounding: whether both cut the text into pieces whose scores have the same sum but for rounding.
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
class Proof:
    """The outcome of a comparison: how many strings of each kind were compared, and which came out differently."""

    strings: collections.Counter[str] = field(default_factory=collections.Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of strings compared."""
        return self.strings.total()

    def faults(self) -> list[Difference]:
        """The differences that are more than rounding."""
        return [difference for difference in self.differences if not difference.is_rounding]

    def natural(self) -> list[Difference]:
        """The faults in natural text."""
        return [difference for difference in self.faults() if difference.kind.startswith(NATURAL)]


def prove(tokenizer: PolyLMTokenizer, converted: Any, strings: Iterable[tuple[str, str]] | None = None) -> Proof:
    """Encode and decode strings with both tokenizers.

    Args:
        tokenizer: SentencePiece's side.
        converted: a `tokenizers.Tokenizer`; its `encode_special_tokens` is set, so that text is only text.
        strings: kind and text of each string; the built-in corpus if None.
    """
    converted.encode_special_tokens = True
    proof = Proof()
    for batch in _batches(proof_strings() if strings is None else strings):
        proof.strings.update(kind for kind, _ in batch)
        proof.differences += _compare(tokenizer, converted, batch)
    return proof


def load_converted(content: str) -> Any:
    """A `tokenizers.Tokenizer` from the text of a tokenizer.json. Raises SnapshotError where it is no such file."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except Exception as error:
        raise SnapshotError(f"tokenizer.json cannot be loaded: {error}. Package the snapshot again.") from error


def _batches(strings: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    source = iter(strings)
    while batch := list(itertools.islice(source, BATCH)):
        yield batch


def _compare(tokenizer: PolyLMTokenizer, converted: Any, batch: Sequence[tuple[str, str]]) -> Iterator[Difference]:
    encoded = converted.encode_batch([text for _, text in batch], add_special_tokens=False)
    expected = [tokenizer.encode(text) for _, text in batch]
    decoded = converted.decode_batch(expected, skip_special_tokens=False)
    for (kind, text), ids, encoding, decoding in zip(batch, expected, encoded, decoded, strict=True):
        if encoding.ids != ids:
            yield Difference(kind, text, ids, encoding.ids, _is_rounding(tokenizer, ids, encoding.ids))
        if decoding != (back := tokenizer.decode(ids)):
            yield Difference(kind, text, back, decoding)


def _is_rounding(tokenizer: PolyLMTokenizer, expected: list[int], found: list[int]) -> bool:
    processor = tokenizer.processor
    if "".join(processor.id_to_piece(expected)) != "".join(processor.id_to_piece(found)):
        return False
    one, other = sum(processor.get_score(expected)), sum(processor.get_score(found))
    return bool(abs(one - other) <= ROUNDING * max(1.0, abs(one)))


def proof_summary(proof: Proof) -> str:
    """One sentence on how tokenizer.json compares with SentencePiece."""
    start = "tokenizer.json gives SentencePiece's ids and text for "
    if not proof.differences:
        return start + f"all of {proof.total:,} strings."
    rounding = len(proof.differences) - len(proof.faults())
    parts = [f"{len(proof.faults())} differ"] if proof.faults() else []
    if rounding:
        parts.append(f"{rounding} are cut at other places with the same probability but for rounding")
    return (
        start
        + f"{proof.total - len({d.text for d in proof.differences}):,} of {proof.total:,} strings; {', '.join(parts)}."
    )
