"""Small tokenizers of every kind that a tokenizer.model can be, trained in a temporary folder."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
import sentencepiece

from modelscope_polylm.text.tokenizer import PolyLMTokenizer

CORPUS = """Beijing is the capital of China. 北京是中国的首都。
Paris ist die Hauptstadt von Frankreich.  Paris est la capitale de la France.
Москва — столица России. 東京は日本の首都です。 서울은 한국의 수도입니다.
القاهرة هي عاصمة مصر. ירושלים กรุงเทพฯ Hà Nội là thủ đô của Việt Nam.
Translate this sentence from English to Chinese. 12345 67890 <|user|> <|assistant|>
def f(x):    return x   # four spaces, full width: ＡＢＣ""".splitlines()


def train(path: Path, **settings: object) -> Path:
    """Train a tokenizer.model on CORPUS; settings are those of SentencePieceTrainer."""
    model = io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "vocab_size": 600 if settings.get("byte_fallback", True) else 300,
        "hard_vocab_limit": False,
        "split_digits": True,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=model, **{**defaults, **settings}
    )
    path.write_bytes(model.getvalue())
    return path


GRID = {
    f"{kind}-{rule}-{'dummy' if dummy else 'plain'}-{'bytes' if fallback else 'unk'}-{'trim' if trim else 'keep'}": {
        "model_type": kind,
        "normalization_rule_name": rule,
        "add_dummy_prefix": dummy,
        "byte_fallback": fallback,
        "remove_extra_whitespaces": trim,
        "allow_whitespace_only_pieces": not trim,
    }
    for kind, rule, dummy, fallback, trim in itertools.product(
        ("bpe", "unigram"), ("nmt_nfkc", "identity"), (True, False), (True, False), (True, False)
    )
}
SPECIAL: dict[str, dict[str, object]] = {
    "user-defined": {"user_defined_symbols": ["<|user|>", "▁▁"], "control_symbols": ["<ctl>"], "pad_id": 3},
    "user-defined-end": {"user_defined_symbols": ["<s>", "</s>"]},
    "user-defined-end-unigram": {"user_defined_symbols": ["</s>"], "model_type": "unigram"},
    "word-end": {"treat_whitespace_as_suffix": True},
    "empty-unknown": {"byte_fallback": False, "unk_surface": ""},
    "characters": {"model_type": "char"},
    "words": {"model_type": "word", "byte_fallback": False},
}


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PolyLMTokenizer]:
    """Name -> tokenizer, over model types, normalizers, whitespace flags, byte fallback and special pieces."""
    folder = tmp_path_factory.mktemp("tokenizers")
    names = {**GRID, **SPECIAL}
    made = {name: PolyLMTokenizer(train(folder / f"{name}.model", **settings)) for name, settings in names.items()}
    rules = folder / "rules.tsv"
    rules.write_text("61 62\t58\n4E2D 56FD\t5A\n")
    made["denormalizer"] = PolyLMTokenizer(train(folder / "denormalizer.model", denormalization_rule_tsv=str(rules)))
    return made


@pytest.fixture(scope="session")
def tokenizer(tokenizers: dict[str, PolyLMTokenizer]) -> PolyLMTokenizer:
    """One like PolyLM's own: BPE, byte fallback, no dummy prefix, no normalization."""
    return tokenizers["bpe-identity-plain-bytes-keep"]
