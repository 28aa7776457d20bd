"""A SentencePiece model as a tokenizer.json of the `tokenizers` library with the same ids and the same decoded text.

What SentencePiece does was read in its sources: `Normalizer::Normalize` (normalizer.cc), `Model::SampleEncode`
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
from modelscope_polylm.files import library_errors
from modelscope_polylm.packaging.files import TOKENIZER_JSON
from modelscope_polylm.packaging.staging import StagingFolder
from modelscope_polylm.packaging.tokenizer.normalizer import (
    Step,
    character_steps,
    inexact_rules,
    replace,
    replace_pattern,
)
from modelscope_polylm.packaging.tokenizer.parity import ParityReport, compare_tokenizers, load_converted
from modelscope_polylm.packaging.tokenizer.settings import Piece, PieceType, TokenizerSettings, read_settings
from modelscope_polylm.text.tokenizer import WORD_START, PolyLMTokenizer

logger = logging.getLogger(__name__)

# A user-defined piece of a BPE model is never merged: in the text a private character stands for it.
FIRST_PLACEHOLDER, MAX_PLACEHOLDERS = 0x10F000, 0xF00
# SentencePiece 0.2 gives a user-defined piece this score for each byte after its first.
USER_DEFINED_SCORE = 0.1
SHOWN_DIFFERENCES = 3


def write_tokenizer(tokenizer: PolyLMTokenizer, staging: StagingFolder, strict: bool) -> ParityReport:
    """Compare a tokenizer.json with SentencePiece on the built-in corpus, then write it.

    Differences that are only rounding do not stop it, unless `strict`.

    Args:
        tokenizer: the source's tokenizer.
        staging: where the file goes.
        strict: refuse any difference at all.

    Raises:
        SnapshotError: the model cannot be converted; the two differ on natural text; or on any text if the model has
            no normalizer rules or `strict` is set.
    """
    settings = read_settings(tokenizer)
    with library_errors(tokenizer.model_file.name):
        content = json.dumps(tokenizer_json(settings), ensure_ascii=False, separators=(",", ":"))
    report = compare_tokenizers(tokenizer, load_converted(content))
    for line in expected_differences(settings):
        logger.info("tokenizer.json: %s.", line)
    _check(report, settings, strict)
    staging.write(TOKENIZER_JSON, content)
    return report


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
    """Raise SnapshotError, with every reason, if `tokenizers` cannot do what the model does."""
    unused = settings.ids_of(PieceType.UNUSED)
    user_defined = settings.ids_of(PieceType.USER_DEFINED)
    reasons = {
        f"its model type is {settings.model_type}, not unigram or bpe": settings.model_type not in ("unigram", "bpe"),
        "it writes word boundaries after words (treat_whitespace_as_suffix)": settings.whitespace_as_suffix,
        "it has a denormalizer": settings.has_denormalizer,
        f"{len(unused)} of its pieces are marked as unused": bool(unused),
        f"{len(user_defined)} of its pieces are user-defined": len(user_defined) > MAX_PLACEHOLDERS,
    }
    if any(reasons.values()):
        found = "; ".join(reason for reason, holds in reasons.items() if holds)
        raise SnapshotError(
            f"tokenizer.model cannot be written as a tokenizer.json: {found}. "
            "Use it with sentencepiece itself, as this package does."
        )


def expected_differences(settings: TokenizerSettings) -> list[str]:
    """Why the tokenizer.json may differ from SentencePiece on some text, a line each; empty for an ordinary model."""
    lines = _vocabulary_differences(settings)
    if settings.character_map and (rules := inexact_rules(settings.character_map)):
        lines.append(
            f"{len(rules)} rules of the normalizer cannot be followed exactly, such as the one for {rules[0]!r}"
        )
    return lines


def _check(report: ParityReport, settings: TokenizerSettings, strict: bool) -> None:
    unacceptable = report.natural_faults if settings.character_map else report.faults
    if strict:
        unacceptable = report.differences
    if unacceptable:
        shown = "\n".join(map(str, unacceptable[:SHOWN_DIFFERENCES]))
        raise SnapshotError(
            f"tokenizer.json differs from SentencePiece on {len(unacceptable)} of {report.total} strings, so nothing "
            f"is packaged:\n{shown}"
        )
    if report.differences:
        logger.warning("tokenizer.json differs from SentencePiece on %d strings.", len(report.differences))


def _special_token(settings: TokenizerSettings, token: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": settings.pieces[token].text, **flags}


def _sequence(key: str, steps: list[Step]) -> Step | None:
    return {"type": "Sequence", key: steps} if steps else None


def _normalizer_steps(settings: TokenizerSettings) -> list[Step]:
    space = WORD_START if settings.escape_whitespaces else " "
    # SentencePiece adds the prefix even where its rules leave no text, but strips it again with extra whitespace.
    prefix: list[Step] = [{"type": "Prepend", "prepend": space}] if settings.add_dummy_prefix else []
    # SentencePiece's rules leave user-defined pieces alone, and its BPE finds them in the rules' output.
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
    # The first mark of a piece may be the prefix, which SentencePiece drops; the other marks are spaces.
    inner = replace_pattern(rf"(?<!\A){WORD_START}", " ")
    dropped = rf"\A{WORD_START}+" if settings.remove_extra_whitespaces else rf"\A{WORD_START}"
    return [*named, *user_defined, inner, *fallback, fuse, replace_pattern(dropped, ""), replace(WORD_START, " ")]


def _user_defined_steps(settings: TokenizerSettings) -> tuple[list[Step], list[Step]]:
    """Steps that replace each user-defined piece by a private character, and steps that undo it."""
    pairs = [(settings.pieces[token].text, placeholder) for token, placeholder in placeholders(settings).items()]
    hide = [replace(text, placeholder) for text, placeholder in pairs]
    return hide, [replace(placeholder, text) for text, placeholder in pairs]


def _literal(text: str) -> str:
    return "".join(f"\\x{{{ord(character):X}}}" for character in text)


def bpe_model(settings: TokenizerSettings) -> dict[str, Any]:
    """The model for `tokenizers`' BPE: like SentencePiece's, it first merges the leftmost pair of the highest score."""
    texts = [piece.text for piece in settings.pieces]
    for token, placeholder in placeholders(settings).items():
        texts[token] = placeholder
    merges = list(_merges(settings))
    # Versions before 0.20 read only pairs that are written as one string.
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
    """The model for `tokenizers`' Unigram, which may find any piece in text: others than text get a losing score."""
    lowest = min((piece.score for piece in settings.pieces if piece.type == PieceType.NORMAL), default=0.0)
    longest = max(len(piece.text) for piece in settings.pieces if not _is_text(piece))
    never = (longest + 1) * 2 * (lowest - 10.0)
    return {
        "type": "Unigram",
        "unk_id": settings.ids_of(PieceType.UNKNOWN)[0],
        "byte_fallback": settings.byte_fallback,
        "vocab": [[piece.text, _unigram_score(piece, never)] for piece in settings.pieces],
    }


def placeholders(settings: TokenizerSettings) -> dict[int, str]:
    """Ids of the user-defined pieces, the longest first, to the private characters that stand for them in text."""
    tokens = settings.ids_of(PieceType.USER_DEFINED)
    longest_first = sorted(tokens, key=lambda token: -len(settings.pieces[token].text.encode()))
    return {token: chr(FIRST_PLACEHOLDER + number) for number, token in enumerate(longest_first)}


def _vocabulary_differences(settings: TokenizerSettings) -> list[str]:
    normal = [piece for piece in settings.pieces if piece.type == PieceType.NORMAL]
    single = {piece.text for piece in normal if len(piece.text) == 1}
    lines = []
    if uncovered := [piece.text for piece in normal if not single.issuperset(piece.text)]:
        lines.append(f"{len(uncovered)} pieces hold a character that is no piece itself, such as {uncovered[0]!r}")
    scores = collections.Counter(piece.score for piece in normal if len(piece.text) > 1)
    equal = sum(count for count in scores.values() if count > 1)
    if equal and settings.model_type == "bpe":
        lines.append(
            f"{equal} pieces share their score with another, so the scores do not determine the order of merges"
        )
    if settings.model_type == "unigram":
        names = {piece.text for piece in settings.pieces if not _is_text(piece)}
        if hidden := sorted(name for name in names if not single.issuperset(name)):
            lines.append(
                f"text that spells {hidden[0]!r} becomes that piece, because some of its characters are no pieces"
            )
        lines.append(
            "SentencePiece adds scores in single precision and tokenizers in double precision: of two segmentations "
            "with the same probability except for rounding, they may choose different ones"
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
    """The splits of a piece; of two that can overlap in a text, the one that can begin further left comes first."""

    # Three neighbours x, y, z with xy = yz = text: SentencePiece joins x and y, which are further left.
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
