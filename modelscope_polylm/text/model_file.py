"""The few bytes of a SentencePiece model file that its own API neither shows nor changes.

A tokenizer.model is one protocol buffer, `ModelProto` of sentencepiece_model.proto: pieces in field 1, the settings of
trainer, normalizer and denormalizer in fields 2, 3 and 5. It is read here by hand, so that protobuf is not needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

PIECE, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
CHARACTER_MAP = 2
PIECE_TYPE = 3
CONTROL = 3

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message: its number, its content, and the bytes that it takes with its tag."""

    number: int
    content: bytes
    encoded: bytes


def missing_sections(model: bytes) -> list[str]:
    """What spm_train always writes and is not there, so that the file must have been cut off."""
    present = {section.number for section in _sections(model)}
    names = {TRAINER: "trainer settings", NORMALIZER: "normalizer settings"}
    return [name for number, name in names.items() if number not in present]


def has_denormalizer(model: bytes) -> bool:
    """Whether the model rewrites decoded text by rules, which may depend on the text that follows."""
    denormalizers = (section.content for section in _sections(model) if section.number == DENORMALIZER)
    return any(rule.number == CHARACTER_MAP and rule.content for spec in denormalizers for rule in message_fields(spec))


def with_control_pieces(model: bytes, ids: Collection[int]) -> bytes:
    """The model with the pieces `ids` turned into control pieces, so that no text is ever encoded to them."""
    parts: list[bytes] = []
    piece_id = 0
    for field in message_fields(model):
        is_piece = field.number == PIECE
        parts.append(_control_piece(field.content) if is_piece and piece_id in ids else field.encoded)
        piece_id += is_piece
    return b"".join(parts)


def _control_piece(piece: bytes) -> bytes:
    kept = b"".join(field.encoded for field in message_fields(piece) if field.number != PIECE_TYPE)
    content = kept + bytes([PIECE_TYPE << 3 | _VARINT, CONTROL])
    return bytes([PIECE << 3 | _BYTES]) + _encoded_varint(len(content)) + content


def _sections(model: bytes) -> Iterator[Field]:
    position, piece_tag = 0, PIECE << 3 | _BYTES
    # The hundreds of thousands of pieces come first and are short: step over them quickly.
    while position + 1 < len(model) and model[position] == piece_tag and model[position + 1] < 0x80:
        position += 2 + model[position + 1]
    return (field for field in message_fields(model[position:]) if field.number != PIECE)


def message_fields(message: bytes) -> Iterator[Field]:
    position = 0
    while position < len(message):
        tag, start = _varint(message, position)
        size, start = _content_size(message, start, tag & 7)
        yield Field(tag >> 3, message[start : start + size], message[position : start + size])
        position = start + size


def _content_size(message: bytes, start: int, wire_type: int) -> tuple[int, int]:
    if wire_type == _BYTES:
        return _varint(message, start)
    if wire_type == _VARINT:
        return _varint(message, start)[1] - start, start
    return {_FIXED64: 8, _FIXED32: 4}[wire_type], start


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while message[position] >= 0x80:
        value |= (message[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | message[position] << shift, position + 1


def _encoded_varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
