"""Token ids to text as they come, without ever decoding a token twice."""

from __future__ import annotations

from collections.abc import Iterable

from modelscope_polylm.text.tokenizer import WORD_START, PolyLMTokenizer


class IncrementalDetokenizer:
    """Turns a stream of token ids into a stream of text.

    All returned texts together are exactly `decode(prefix + ids)[len(decode(prefix)):]`. A character that is spread
    over several byte pieces comes out whole, when its last byte is there. The cost per id is constant: SentencePiece
    decodes only the new ids, after one piece that puts it into the state that all earlier ids left it in. Two things
    make that state (`SentencePieceProcessor::Decode`): whether there is text yet, and whether a leading space was taken
    away. A model file with denormalizer rules, which can rewrite across tokens, gives its text in `finish`.
    """

    def __init__(
        self, tokenizer: PolyLMTokenizer, prefix_ids: Iterable[int] = (), skip_special_tokens: bool = True
    ) -> None:
        """Start after a prompt.

        Args:
            tokenizer: the tokenizer that the ids belong to.
            prefix_ids: ids before the stream, such as the prompt's; their text is not returned.
            skip_special_tokens: as in `PolyLMTokenizer.decode`.

        Raises:
            InputError: an id that is no whole number or out of range.
        """
        self._tokenizer = tokenizer
        self._dropped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._context: list[int] = []
        self._context_length = 0
        self._pending: list[int] = []
        prefix = tokenizer.checked_ids(prefix_ids)
        self._to_skip = len(tokenizer.decode(prefix, skip_special_tokens))
        self.push(prefix)

    def push(self, ids: Iterable[int]) -> str:
        """Take the next ids; return the new text that no later id can change.

        Raises:
            InputError: an id that is no whole number or out of range.
        """
        self._pending += [token for token in self._tokenizer.checked_ids(ids) if token not in self._dropped]
        if self._tokenizer.anchor_id is None:
            return ""
        return self._decode_pending(len(self._pending) - self._unfinished_bytes())

    def finish(self) -> str:
        """Return the rest of the text; bytes of a character that was never completed come out as U+FFFD."""
        return self._decode_pending(len(self._pending))

    def _unfinished_bytes(self) -> int:
        # Only the last three ids matter: no byte that starts a character can be inside another one.
        for count, token in enumerate(reversed(self._pending[-3:]), start=1):
            value = self._tokenizer.byte_value(token)
            if value is None or value < 0x80:
                return 0
            if value >= 0xC0:
                return count if _character_length(value) > count else 0
        return 0

    def _decode_pending(self, count: int) -> str:
        ids, self._pending = self._pending[:count], self._pending[count:]
        if not ids:
            return ""
        text: str = self._tokenizer.processor.decode(self._context + ids)[self._context_length :]
        self._update_context(ids, text)
        skipped = min(self._to_skip, len(text))
        self._to_skip -= skipped
        return text[skipped:]

    def _update_context(self, ids: list[int], text: str) -> None:
        anchor = self._tokenizer.anchor_id
        if self._context_length:
            return
        if text and anchor is not None:
            self._context = [anchor]
            self._context_length = len(self._tokenizer.processor.decode(self._context))
        elif not self._context:
            # No text yet, but a space may have been taken away: such a piece stands for all of them.
            self._context = [token for token in ids if self._is_space(token)][:1]

    def _is_space(self, token: int) -> bool:
        special = token in self._tokenizer.special_ids
        return not special and self._tokenizer.id_to_piece(token).startswith(WORD_START)


def _character_length(first_byte: int) -> int:
    """Bytes of the UTF-8 character that starts with this byte, as SentencePiece counts them; 1 for an invalid byte."""
    return 4 if 0xF0 <= first_byte < 0xF8 else 3 if 0xE0 <= first_byte < 0xF0 else 2 if first_byte < 0xE0 else 1
