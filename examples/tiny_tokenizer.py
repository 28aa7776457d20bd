"""The demonstration model's tokenizer, trained with PolyLM's settings: used by train_tiny.py."""

from __future__ import annotations

import io
from collections.abc import Iterator

import sentencepiece
from tiny_corpus import BLOCKS, pairs

VOCABULARY = 3000
END = 2
# Letters that any text in these languages may need; whatever is missing falls back to bytes.
ALPHABETS = (
    (0x21, 0x7E),  # ASCII
    (0xC0, 0xFF),  # Latin letters with accents
    (0x410, 0x44F),  # Cyrillic
    (0x5D0, 0x5EA),  # Hebrew
    (0x621, 0x64A),  # Arabic
    (0xE01, 0xE3A),  # Thai
    (0x3041, 0x30F6),  # Hiragana and Katakana
)


def tokenizer_lines() -> Iterator[str]:
    """Yield prompts, answers, and each name on its own, so that names become pieces before whole phrases do."""
    for pair in pairs():
        yield from pair.prompt.splitlines()
        yield pair.answer
    for block in BLOCKS:
        yield from [name for names in block.forms for name in names] * 8


def train_tokenizer() -> bytes:
    """Train a tokenizer with PolyLM's settings; newline is no piece of its own and therefore the byte piece <0x0A>."""
    required = "".join(chr(code) for first, last in ALPHABETS for code in range(first, last + 1))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=tokenizer_lines(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        required_chars=required,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=END,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
