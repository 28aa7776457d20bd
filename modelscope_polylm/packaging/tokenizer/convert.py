"""A SentencePiece model as a tokenizer.json of the `tokenizers` library with the same ids and the same decoded text.

SentencePiece's own behaviour is that of its sources: `Normalizer::Normalize` (normalizer.cc), `Model::SampleEncode`
(bpe_model.cc), `Model::EncodeOptimized` (unigram_model.cc) and `SentencePieceProcessor::Decode`
(sentencepiece_processor.cc).
"""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Iterator
from typing import Any

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.packaging.files import TOKENIZER_JSON
from modelscope_polylm.packaging.staging import UnfinishedPackage
from modelscope_polylm.packaging.tokenizer.normalizer import (
    Step,
    character_steps,
    inexact_rules,
    replace,
    replace_pattern,
)
from modelscope_polylm.packaging.tokenizer.parity import Proof, load_converted, prove
from modelscope_polylm.packaging.tokenizer.settings import Piece, PieceType, TokenizerSettings, read_settings
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)


WORD_START = "\u2581"


def tokenizer_json(settings: TokenizerSettings) -> dict[str, Any]:
    """The contents of tokenizer.json, for any version of `tokenizers` from 0.19.

    Control pieces are its special tokens: `tokenizers` finds them in text unless `encode_special_tokens` is set, which
    transformers calls `split_special_tokens`.

    Raises:
        SnapshotError: the model is of a kind that `tokenizers` cannot express.
    """
    check_convertible(settings)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _special_token(settings, token) for token in settings.ids_of(PieceType.UNKNOWN, PieceType.CONTROL)
        ],
        "normalizer": _sequence("normalizers", _normalizer_steps(settings)),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _sequence("decoders", _decoder_steps(settings)),
        "model": bpe_model(settings) if settings.model_type == "bpe" else unigram_model(settings),
    }


def check_convertible(settings: TokenizerSettings) -> None:
    """Raise SnapshotError, with every reason, where `tokenizers` has nothing that does the same."""
    unused = settings.ids_of(PieceType.UNUSED)
    user_defined = settings.ids_of(PieceType.USER_DEFINED)
    reasons = {
        f"its model type is {settings.model_type}, not unigram or bpe": settings.model_type not in ("unigram", "bpe"),
        "it writes word boundaries after words (treat_whitespace_as_suffix)": settings.whitespace_as_suffix,
        "it has a denormalizer": settings.has_denormalizer,
        f"{len(unused)} of its pieces are marked as unused": bool(unused),
        f"{len(user_defined)} of its pieces are user-defined": len(user_defined) > MOST_STAND_INS,
    }
    if any(reasons.values()):
        found = "; ".join(reason for reason, holds in reasons.items() if holds)
        raise SnapshotError(
            f"tokenizer.model cannot be written as a tokenizer.json: {found}. "
            "Use it through sentencepiece itself, as this package does."
        )


def doubts(settings: TokenizerSettings) -> list[str]:
    """Why the tokenizer.json may differ from SentencePiece on some text, a line each; empty for an ordinary model."""
    lines = vocabulary_doubts(settings)
    if settings.character_map and (rules := inexact_rules(settings.character_map)):
        lines.append(f"{len(rules)} rules of the normalizer cannot be followed exactly, such as that for {rules[0]!r}")
    return lines


def _special_token(settings: TokenizerSettings, token: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": settings.pieces[token].text, **flags}


def _sequence(key: str, steps: list[Step]) -> Step | None:
    return {"type": "Sequence", key: steps} if steps else None


def _normalizer_steps(settings: TokenizerSettings) -> list[Step]:
    space = WORD_START if settings.escape_whitespaces else " "
    # SentencePiece adds the prefix to a text that its rules leave empty, but removes it again with extra whitespace.
    prefix: list[Step] = [{"type": "Prepend", "prepend": space}] if settings.add_dummy_prefix else []
    # SentencePiece's rules leave user-defined pieces alone, and its BPE finds them in what the rules have made.
    hide, show = _user_defined_steps(settings)
    characters = [*hide, *character_steps(settings.character_map), *show] if settings.character_map else []
    hide_from_merges = hide if settings.model_type == "bpe" else []
    escape = [replace(" ", WORD_START)] if settings.escape_whitespaces else []
    trailing = f"[ {space}]+\\z" if settings.escape_whitespaces else " +\\z"
    strip = [replace_pattern(" {2,}", " "), replace_pattern("\\A ", ""), replace_pattern(trailing, "")]
    if settings.remove_extra_whitespaces:
        return [*characters, *strip, *prefix, *escape, *hide_from_merges]
    return [*prefix, *characters, *escape, *hide_from_merges]


def _decoder_steps(settings: TokenizerSettings) -> list[Step]:
    unknown = settings.pieces[settings.ids_of(PieceType.UNKNOWN)[0]].text
    named = [replace_pattern(rf"\A{_literal(unknown)}\z", settings.unknown_surface)]
    user_defined = _user_defined_steps(settings)[1] if settings.model_type == "bpe" else []
    fallback: list[Step] = [{"type": "ByteFallback"}] if settings.byte_fallback else []
    fuse: Step = {"type": "Fuse"}
    if not settings.add_dummy_prefix and not settings.remove_extra_whitespaces:
        return [*named, *user_defined, replace(WORD_START, " "), *fallback, fuse]
    # The first mark of a piece is the prefix that SentencePiece may drop; other marks of the piece are spaces.
    inner = replace_pattern(rf"(?<!\A){WORD_START}", " ")
    dropped = rf"\A{WORD_START}+" if settings.remove_extra_whitespaces else rf"\A{WORD_START}"
    return [*named, *user_defined, inner, *fallback, fuse, replace_pattern(dropped, ""), replace(WORD_START, " ")]


def _user_defined_steps(settings: TokenizerSettings) -> tuple[list[Step], list[Step]]:
    """Steps that put a private character in the place of each user-defined piece, and steps that undo it."""
    names = [(settings.pieces[token].text, name) for token, name in stand_ins(settings).items()]
    return [replace(text, name) for text, name in names], [replace(name, text) for text, name in names]


def _literal(text: str) -> str:
    return "".join(f"\\x{{{ord(character):X}}}" for character in text)


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


SHOWN = 3


def write_tokenizer(tokenizer: PolyLMTokenizer, package: UnfinishedPackage, strict: bool) -> Proof:
    """Write tokenizer.json after it was compared with SentencePiece on the built-in corpus.

    Differences by rounding never stop it, unless `strict`; see `Proof`.

    Raises:
        SnapshotError: the model cannot be converted; the two differ on natural text, or on any text where the model has
            no normalizer rules; or at all, if `strict`.
    """
    settings = read_settings(tokenizer)
    content = json.dumps(tokenizer_json(settings), ensure_ascii=False, separators=(",", ":"))
    proof = prove(tokenizer, load_converted(content))
    for line in doubts(settings):
        logger.info("tokenizer.json: %s.", line)
    _check(proof, settings, strict)
    package.write(TOKENIZER_JSON, content)
    return proof


def _check(proof: Proof, settings: TokenizerSettings, strict: bool) -> None:
    if strict:
        stopping = proof.differences
    elif settings.character_map:
        stopping = proof.natural()
    else:
        stopping = proof.faults()
    if stopping:
        shown = "\n".join(str(difference) for difference in stopping[:SHOWN])
        raise SnapshotError(
            f"tokenizer.json differs from SentencePiece on {len(stopping)} of {proof.total} strings, so nothing is "
            f"packaged:\n{shown}"
        )
    if proof.differences:
        logger.warning("tokenizer.json differs from SentencePiece on %d strings.", len(proof.differences))
