"""The settings of a SentencePiece model file that another tokenizer library has to follow."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from modelscope_polylm.files import library_errors
from modelscope_polylm.text.tokenizer import (
    NORMALIZER,
    PIECE,
    TRAINER,
    PolyLMTokenizer,
    has_denormalizer,
    message_fields,
)

MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
DEFAULT_UNKNOWN_SURFACE = " \u2047 "


class PieceType(enum.IntEnum):
    """`SentencePiece.Type` of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One piece of the vocabulary.

    Attributes:
        text: with U+2581 for a space.
        score: its log probability in a unigram model; in a BPE model pieces of higher scores are merged first.
        type: whether text is encoded to it, and how.
    """

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of a model file that change ids or text, mostly under the names of sentencepiece_model.proto.

    Attributes:
        model_type: 'unigram', 'bpe', 'word' or 'char'.
        whitespace_as_suffix: `treat_whitespace_as_suffix`, word boundaries after words.
        unknown_surface: what the unknown piece is decoded to.
        normalizer: name of the normalization rule, such as 'identity' or 'nmt_nfkc'.
        character_map: `NormalizerSpec.precompiled_charsmap`, empty for the identity.
        has_denormalizer: whether decoded text is rewritten by rules.
        pieces: the vocabulary in the order of its ids.
    """

    model_type: str
    byte_fallback: bool
    whitespace_as_suffix: bool
    unknown_surface: str
    normalizer: str
    character_map: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    has_denormalizer: bool
    pieces: list[Piece]

    def ids_of(self, *types: PieceType) -> list[int]:
        """Ids of the pieces that have one of the types."""
        return [token for token, piece in enumerate(self.pieces) if piece.type in types]


def read_settings(tokenizer: PolyLMTokenizer) -> TokenizerSettings:
    """Read the settings of a loaded tokenizer's model file.

    A piece that the tokenizer never encodes text to, such as a user-defined `</s>`, counts as a control piece.

    Raises:
        SnapshotError: the file cannot be read or is damaged.
    """
    with library_errors(tokenizer.model_file.name):
        return _parse(tokenizer.model_file.read_bytes(), tokenizer)


def _parse(model: bytes, tokenizer: PolyLMTokenizer) -> TokenizerSettings:
    sections: dict[int, dict[int, bytes]] = {TRAINER: {}, NORMALIZER: {}}
    pieces: list[Piece] = []
    for field in message_fields(model):
        if field.number == PIECE:
            is_special = len(pieces) in tokenizer.special_ids and len(pieces) != tokenizer.unk_token_id
            pieces.append(_piece(field.content, is_special))
        elif field.number in sections:
            sections[field.number].update((part.number, part.content) for part in message_fields(field.content))
    trainer, normalizer = sections[TRAINER], sections[NORMALIZER]
    return TokenizerSettings(
        model_type=MODEL_TYPES.get(_number(trainer, 3, 1), "unknown"),
        byte_fallback=_number(trainer, 35, 0) == 1,
        whitespace_as_suffix=_number(trainer, 24, 0) == 1,
        unknown_surface=trainer[44].decode() if 44 in trainer else DEFAULT_UNKNOWN_SURFACE,
        normalizer=normalizer.get(1, b"").decode(),
        character_map=normalizer.get(2, b""),
        add_dummy_prefix=_number(normalizer, 3, 1) == 1,
        remove_extra_whitespaces=_number(normalizer, 4, 1) == 1,
        escape_whitespaces=_number(normalizer, 5, 1) == 1,
        has_denormalizer=has_denormalizer(model),
        pieces=pieces,
    )


def _piece(message: bytes, is_special: bool) -> Piece:
    fields = {field.number: field.content for field in message_fields(message)}
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    type = PieceType.CONTROL if is_special else PieceType(_number(fields, 3, 1))
    return Piece(fields.get(1, b"").decode(), score, type)


def _number(fields: Mapping[int, bytes], number: int, default: int) -> int:
    """The value of a small enum or flag, which fits in the first byte of its varint."""
    return fields[number][0] & 0x7F if number in fields else default
