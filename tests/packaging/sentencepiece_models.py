"""Small SentencePiece models with any settings."""

from __future__ import annotations

import functools
import io
from typing import Any

import sentencepiece

from modelscope_polylm.packaging.tokenizer.parity import code_snippets, sentences


@functools.lru_cache(maxsize=64)
def train(vocab_size: int = 3000, **settings: Any) -> bytes:
    """A model file trained on the built-in sentences and code; `settings` are those of spm_train."""
    texts = [sentence for language in sentences().values() for sentence in language] + code_snippets()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 2),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"character_coverage": 1.0, "split_digits": True, "remove_extra_whitespaces": False, **settings},
    )
    return model.getvalue()
