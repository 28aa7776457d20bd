"""The vocabulary of a SentencePiece model as a BPE or Unigram model of the `tokenizers` library."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

from modelscope_polylm.hub.tokenizer_settings import Piece, PieceType, TokenizerSettings

# A user-defined piece of a BPE model is never merged: text holds one private character in its place.
FIRST_STAND_IN, MOST_STAND_INS = 0x10F000, 0xF00
# SentencePiece 0.2 gives a user-defined piece this score for each byte after its first.
USER_DEFINED_SCORE = 0.1


def bpe_model(settings: TokenizerSettings) -> dict[str, Any]:
    """`tokenizers`' BPE: SentencePiece merges the pair that makes the piece of the highest score, leftmost first."""
    texts = [piece.text for piece in settings.pieces]
    for token, name in stand_ins(settings).items():
        texts[token] = name
    merges = list(_merges(settings))
    # Versions below 0.20 know only pairs written as one string.
    is_plain = not any(" " in part for merge in merges for part in merge)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": texts[settings.ids_of(PieceType.UNKNOWN)[0]],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": settings.byte_fallback,
        "vocab": {text: token for token, text in enumerate(texts)},
        "merges": [" ".join(merge) for merge in merges] if is_plain else [list(merge) for merge in merges],
    }


def unigram_model(settings: TokenizerSettings) -> dict[str, Any]:
    """`tokenizers`' Unigram: it finds any piece in text, so those that text must not become get a score that loses."""
    lowest = min((piece.score for piece in settings.pieces if piece.type == PieceType.NORMAL), default=0.0)
    longest = max(len(piece.text) for piece in settings.pieces if not _is_text(piece))
    never = (longest + 1) * 2 * (lowest - 10.0)
    return {
        "type": "Unigram",
        "unk_id": settings.ids_of(PieceType.UNKNOWN)[0],
        "byte_fallback": settings.byte_fallback,
        "vocab": [[piece.text, _unigram_score(piece, never)] for piece in settings.pieces],
    }


def stand_ins(settings: TokenizerSettings) -> dict[int, str]:
    """Ids of the user-defined pieces, the longest first, to the private characters that take their place in text."""
    tokens = settings.ids_of(PieceType.USER_DEFINED)
    longest_first = sorted(tokens, key=lambda token: -len(settings.pieces[token].text.encode()))
    return {token: chr(FIRST_STAND_IN + number) for number, token in enumerate(longest_first)}


def vocabulary_doubts(settings: TokenizerSettings) -> list[str]:
    """Why ids may differ from SentencePiece's on some text, a line each."""
    normal = [piece for piece in settings.pieces if piece.type == PieceType.NORMAL]
    single = {piece.text for piece in normal if len(piece.text) == 1}
    lines = []
    if uncovered := [piece.text for piece in normal if not single.issuperset(piece.text)]:
        lines.append(f"{len(uncovered)} pieces hold a character that is no piece itself, such as {uncovered[0]!r}")
    scores = collections.Counter(piece.score for piece in normal if len(piece.text) > 1)
    equal = sum(count for count in scores.values() if count > 1)
    if equal and settings.model_type == "bpe":
        lines.append(
            f"{equal} pieces share their score with another, so that the order of merges is not told by scores"
        )
    if settings.model_type == "unigram":
        names = {piece.text for piece in settings.pieces if not _is_text(piece)}
        if hidden := sorted(name for name in names if not single.issuperset(name)):
            lines.append(
                f"text that spells {hidden[0]!r} becomes that piece, since some of its characters are no pieces"
            )
        lines.append(
            "SentencePiece adds scores in single precision and tokenizers in double: where two ways to cut a text have "
            "the same probability but for rounding, they may choose differently"
        )
    return lines


def _merges(settings: TokenizerSettings) -> Iterator[tuple[str, str]]:
    ranked = sorted(
        (-piece.score, token) for token, piece in enumerate(settings.pieces) if piece.type == PieceType.NORMAL
    )
    known = {settings.pieces[token].text for _, token in ranked}
    for _, token in ranked:
        text = settings.pieces[token].text
        for end in _ordered_splits(text, [i for i in range(1, len(text)) if text[:i] in known and text[i:] in known]):
            yield text[:end], text[end:]


def _ordered_splits(text: str, ends: list[int]) -> list[int]:
    """Where two splits of a piece can overlap in a text, the one that can begin further left comes first."""

    # Three neighbours x, y, z with xy = yz = text: SentencePiece joins x and y, since they are further left.
    def is_later(end: int) -> bool:
        other = len(text) - end
        return other in ends and text[:end] == text[other:] and text[end:] != text[:other]

    return sorted(ends, key=is_later) if len(ends) > 1 else ends


def _is_text(piece: Piece) -> bool:
    return piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)


def _unigram_score(piece: Piece, never: float) -> float:
    if piece.type == PieceType.USER_DEFINED:
        return USER_DEFINED_SCORE * (len(piece.text.encode()) - 1)
    return piece.score if piece.type == PieceType.NORMAL else never
