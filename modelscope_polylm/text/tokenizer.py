"""PolyLM's tokenizer: SentencePiece on the file `tokenizer.model`, as the original stack called it."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece

from modelscope_polylm.errors import InputError, SnapshotError, suggestion
from modelscope_polylm.files import library_errors, read_untrusted
from modelscope_polylm.text.prompts import FORMATS, PromptFormat, check_messages, known_format, render

FILE_NAME = "tokenizer.model"
MODEL_BYTES = 16 << 20
"""Most bytes of a model file; the published one, of 256,000 pieces, has 4.75 million."""
WORD_START = "\u2581"

# Numbers of fields in sentencepiece_model.proto, and the wire types of protobuf.
PIECE, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
CHARACTER_MAP = 2
PIECE_TYPE = 3
CONTROL = 3
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
VARINT_BYTES = 10


class PolyLMTokenizer:
    """Cuts text into token ids and joins them again, by any SentencePiece model file. Safe to use from several threads.

    `encode` is `SentencePieceProcessor.encode`: no token is added, and text is only text. A model file may declare
    `</s>` or `<s>` as a user-defined piece, which SentencePiece finds in text; here such a piece is never encoded to.
    `decode` is `SentencePieceProcessor.decode`.

    Attributes:
        vocab_size: number of pieces; ids are 0 to vocab_size - 1.
        eos_token_id, unk_token_id: ids of the end and the unknown piece.
        bos_token_id: id of the start piece, None where there is none.
        special_ids: ids of the control and unknown pieces.
        anchor_id: a piece with visible text that stands for any text before the ids that follow it; None where decoded
            text depends on what follows, because the model has denormalizer rules.
        processor: the SentencePieceProcessor that decodes.
        prompt_format: how `apply_chat_template` writes messages: that of the opened snapshot, None for a file alone.
    """

    prompt_format: PromptFormat | None = None

    def __init__(self, model_file: str | Path) -> None:
        """Load a model file.

        Raises:
            SnapshotError: the file is missing, unreadable, cut off, or without an end piece.
        """
        self.model_file = Path(model_file)
        model = read_untrusted(self.model_file, MODEL_BYTES)
        with library_errors(str(self.model_file)):
            self.processor: Any = _load(model, self.model_file)
            self.vocab_size: int = self.processor.get_piece_size()
            self.unk_token_id: int = self.processor.unk_id()
            self.bos_token_id = self._piece_id("<s>", self.processor.bos_id())
            self.eos_token_id = self._required_end_id()
            self.special_ids = self._find_special_ids()
            self._byte_values = self._find_byte_values()
            self._encoder = self._safe_encoder(model)
            self.anchor_id = None if has_denormalizer(model) else self._find_anchor()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PolyLMTokenizer:
        """Load `tokenizer.model` of a snapshot folder. Raises SnapshotError where it is missing or broken."""
        return cls(Path(folder) / FILE_NAME)

    def __call__(
        self, text: str | Sequence[str], *, padding: bool = False, return_tensors: str | None = None
    ) -> dict[str, Any]:
        """Cut a text, or several, as the tokenizers of transformers do: nothing is added.

        Args:
            text: one text, or a list of texts.
            padding: fill shorter texts up with end tokens on the left, where generation needs them.
            return_tensors: 'pt' for int64 tensors, [texts, tokens]; None for lists.

        Returns:
            'input_ids', and the 'attention_mask' with 0 for what was filled up.

        Raises:
            InputError: as `encode`, or texts of different lengths for one tensor.
        """
        texts = [text] if isinstance(text, str) else list(text)
        ids = [self.encode(each) for each in texts]
        longest = max(map(len, ids), default=0) if padding else 0
        masks = [[0] * (longest - len(own)) + [1] * len(own) for own in ids]
        ids = [[self.eos_token_id] * (longest - len(own)) + own for own in ids]
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": masks}
        if return_tensors is None:
            return {name: values[0] for name, values in found.items()} if isinstance(text, str) else found
        if return_tensors != "pt":
            raise InputError(f"return_tensors={return_tensors!r} is unknown: use 'pt', or leave it out for lists.")
        if len({len(own) for own in ids}) > 1:
            raise InputError("The texts have different numbers of tokens: pass padding=True for one tensor.")
        import torch

        return {name: torch.tensor(values, dtype=torch.int64) for name, values in found.items()}

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        prompt_format: str | None = None,
    ) -> str | list[int]:
        """Write a conversation as the prompt for its next answer.

        Args:
            messages: {'role': ..., 'content': ...}, the user first and last.
            tokenize: return token ids, not the text.
            add_generation_prompt: True, as PolyLM's formats end where the answer begins.
            prompt_format: a name in `text.prompts.FORMATS`; the snapshot's if None.

        Raises:
            InputError: wrong messages, an unknown format, or none where the snapshot tells none.
        """
        if not add_generation_prompt:
            raise InputError("add_generation_prompt=False: PolyLM's formats always end where the answer begins.")
        if prompt_format is not None and prompt_format not in FORMATS:
            raise InputError(f"prompt_format={prompt_format!r} is unknown: {suggestion(prompt_format, FORMATS)}")
        form = known_format(self.prompt_format if prompt_format is None else FORMATS[prompt_format])
        text = render(check_messages(messages, format=form), form)
        return self.encode(text) if tokenize else text

    def encode(self, text: str) -> list[int]:
        """Cut a text into token ids: exactly those of SentencePiece.

        Raises:
            InputError: not a str, a lone surrogate, or a text that SentencePiece cannot take.
        """
        check_text(text)
        try:
            ids: list[int] = self._encoder.encode(text)
        except Exception as error:
            raise InputError(f"SentencePiece cannot encode this text of {len(text)} characters: {error}") from error
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Join token ids to a text: exactly that of SentencePiece.

        Args:
            ids: whole numbers from 0 to vocab_size - 1.
            skip_special_tokens: drop control and unknown ids first, as transformers 4.31's slow LlamaTokenizer did.

        Raises:
            InputError: an id that is no whole number or out of range.
        """
        checked = self.checked_ids(ids)
        if skip_special_tokens:
            checked = [token for token in checked if token not in self.special_ids]
        text: str = self.processor.decode(checked) if checked else ""
        return text

    def checked_ids(self, ids: Iterable[int]) -> list[int]:
        """Return the ids as a list of int. Raises InputError where one is no whole number or out of range."""
        if isinstance(ids, (str, bytes, bytearray)) or not isinstance(ids, Iterable):
            raise InputError(f"Token ids must be a sequence of whole numbers, not {ids!r:.80}.")
        tokens = list(ids)
        if set(map(type, tokens)) == {int} and min(tokens) >= 0 and max(tokens) < self.vocab_size:
            return tokens
        return [self._checked_id(token, f" at position {position}") for position, token in enumerate(tokens)]

    def id_to_piece(self, token: int) -> str:
        """Return the piece of the model file, with U+2581 for a space. Raises InputError for an id out of range."""
        piece: str = self.processor.id_to_piece(self._checked_id(token))
        return piece

    def piece_bytes(self, token: int) -> bytes | None:
        """Return the UTF-8 bytes that an id adds to a text, one for a byte piece; None for control and unknown pieces.

        Raises:
            InputError: an id out of range.
        """
        token = self._checked_id(token)
        if token in self.special_ids:
            return None
        if token in self._byte_values:
            return bytes([self._byte_values[token]])
        return self.id_to_piece(token).replace(WORD_START, " ").encode()

    def byte_value(self, token: int) -> int | None:
        """Return the byte that a byte piece such as `<0x0A>` stands for, None for every other piece."""
        return self._byte_values.get(token)

    def __len__(self) -> int:
        return self.vocab_size

    def _checked_id(self, token: Any, where: str = "") -> int:
        try:
            number = operator.index(token)
        except TypeError:
            raise InputError(f"Token id {token!r:.80}{where} is not a whole number.") from None
        if isinstance(token, bool) or not 0 <= number < self.vocab_size:
            raise InputError(f"Token id {token!r:.80}{where} is not one of the tokenizer's 0 to {self.vocab_size - 1}.")
        return number

    def _piece_id(self, piece: str, declared: int) -> int | None:
        found: int = self.processor.piece_to_id(piece)
        if self.processor.id_to_piece(found) == piece:
            return found
        return declared if declared >= 0 else None

    def _required_end_id(self) -> int:
        end = self._piece_id("</s>", self.processor.eos_id())
        if end is None:
            raise SnapshotError(f"{self.model_file} has no end piece </s>: it is no PolyLM tokenizer.")
        return end

    def _safe_encoder(self, model: bytes) -> Any:
        # Two processors: text must not become a special id, but ids are decoded as the file says.
        matchable = {token for token in self.special_ids if not self._is_hidden(token)}
        return _load(with_control_pieces(model, matchable), self.model_file) if matchable else self.processor

    def _find_special_ids(self) -> frozenset[int]:
        is_control = self.processor.is_control
        named = (self.unk_token_id, self.bos_token_id, self.eos_token_id)
        controls = (token for token in range(self.vocab_size) if is_control(token))
        return frozenset(controls) | frozenset(token for token in named if token is not None)

    def _find_byte_values(self) -> dict[int, int]:
        ids = ((self.processor.piece_to_id(f"<0x{value:02X}>"), value) for value in range(256))
        return {token: value for token, value in ids if self.processor.is_byte(token)}

    def _is_hidden(self, token: int) -> bool:
        return bool(self.processor.is_control(token) or self.processor.is_unknown(token))

    def _find_anchor(self) -> int | None:
        invisible = self.special_ids | self._byte_values.keys()
        candidates = (token for token in range(self.vocab_size) if token not in invisible)
        return next((token for token in candidates if self.processor.decode([token])), None)


def check_text(text: object) -> None:
    """Raise InputError unless `text` is a str that can be written as UTF-8."""
    if not isinstance(text, str):
        hint = " Decode it first, as in text.decode('utf-8')." if isinstance(text, (bytes, bytearray)) else ""
        if isinstance(text, (list, tuple)):
            hint = " Give texts one by one: of batches, such as a DataLoader's, give the data set itself."
        raise InputError(f"The text must be a str, not {type(text).__name__}: {text!r:.80}.{hint}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is no "
            "character: read the text with its right encoding, or remove it."
        ) from None


def _load(model: bytes, model_file: Path) -> Any:
    processor = sentencepiece.SentencePieceProcessor()
    advice = "It is damaged or not a SentencePiece model: download it again."
    try:
        processor.LoadFromSerializedProto(model)
    except Exception as error:
        raise SnapshotError(f"SentencePiece cannot load {model_file} ({len(model)} bytes): {error} {advice}") from error
    if missing := missing_sections(model):
        raise SnapshotError(f"{model_file} ({len(model)} bytes) has no {' and no '.join(missing)}. {advice}")
    return processor


class Field(NamedTuple):
    """One field of a message: its number, its content, and the bytes that it takes with its tag."""

    number: int
    content: bytes
    encoded: bytes


def missing_sections(model: bytes) -> list[str]:
    """Name what spm_train always writes and the file does not have, so that it must have been cut off."""
    present = {section.number for section in _sections(model)}
    names = {TRAINER: "trainer settings", NORMALIZER: "normalizer settings"}
    return [name for number, name in names.items() if number not in present]


def has_denormalizer(model: bytes) -> bool:
    """Tell whether the model rewrites decoded text by rules, which may depend on the text that follows."""
    denormalizers = (section.content for section in _sections(model) if section.number == DENORMALIZER)
    return any(rule.number == CHARACTER_MAP and rule.content for spec in denormalizers for rule in message_fields(spec))


def with_control_pieces(model: bytes, ids: Collection[int]) -> bytes:
    """Make the pieces `ids` of a model control pieces, so that no text is ever encoded to them."""
    parts: list[bytes] = []
    piece_id = 0
    for field in message_fields(model):
        is_piece = field.number == PIECE
        parts.append(_control_piece(field.content) if is_piece and piece_id in ids else field.encoded)
        piece_id += is_piece
    return b"".join(parts)


def _control_piece(piece: bytes) -> bytes:
    kept = b"".join(field.encoded for field in message_fields(piece) if field.number != PIECE_TYPE)
    content = kept + bytes([PIECE_TYPE << 3 | VARINT, CONTROL])
    return bytes([PIECE << 3 | BYTES]) + _encoded_varint(len(content)) + content


def _sections(model: bytes) -> Iterator[Field]:
    position, piece_tag = 0, PIECE << 3 | BYTES
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
    if wire_type == BYTES:
        return _varint(message, start)
    if wire_type == VARINT:
        return _varint(message, start)[1] - start, start
    if wire_type not in (FIXED64, FIXED32):
        raise ValueError(f"a field has the wire type {wire_type}, which no SentencePiece model uses")
    return 8 if wire_type == FIXED64 else 4, start


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while message[position] >= 0x80:
        value |= (message[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if shift >= 7 * VARINT_BYTES:
            raise ValueError("a number is longer than any number of protobuf")
    return value | message[position] << shift, position + 1


def _encoded_varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
