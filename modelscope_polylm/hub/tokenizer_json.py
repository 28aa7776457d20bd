"""A SentencePiece model as a tokenizer.json of the `tokenizers` library with the same ids and the same decoded text.

SentencePiece's own behaviour is that of its sources: `Normalizer::Normalize` (normalizer.cc), `Model::SampleEncode`
(bpe_model.cc), `Model::EncodeOptimized` (unigram_model.cc) and `SentencePieceProcessor::Decode`
(sentencepiece_processor.cc).
"""

from __future__ import annotations

from typing import Any

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.hub.character_map import Step, character_steps, inexact_rules, replace, replace_pattern
from modelscope_polylm.hub.tokenizer_models import (
    MOST_STAND_INS,
    bpe_model,
    stand_ins,
    unigram_model,
    vocabulary_doubts,
)
from modelscope_polylm.hub.tokenizer_settings import PieceType, TokenizerSettings

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
