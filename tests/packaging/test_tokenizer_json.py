"""tokenizer.json against SentencePiece, for every setting of a model file that changes ids or text."""

from __future__ import annotations

import functools
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.packaging.tokenizer.convert import expected_differences, tokenizer_json
from modelscope_polylm.packaging.tokenizer.normalizer import character_steps, read_rules
from modelscope_polylm.packaging.tokenizer.parity import (
    ParityReport,
    compare_tokenizers,
    corpus_strings,
    load_converted,
)
from modelscope_polylm.packaging.tokenizer.settings import TokenizerSettings, read_settings
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from tests.packaging.sentencepiece_models import train

# Each maps to a part of the strings, so that the whole matrix runs in seconds.
SAMPLE = 15
USER_DEFINED = ("<|user|>", "\n\n", "sentence", "\u2581\u2581\u2581")
MATRIX = {
    "identity": {"normalization_rule_name": "identity"},
    "identity prefix": {"normalization_rule_name": "identity", "add_dummy_prefix": True},
    "identity no fallback": {"normalization_rule_name": "identity", "byte_fallback": False},
    "identity strip": {"normalization_rule_name": "identity", "remove_extra_whitespaces": True},
    "identity strip prefix": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": True,
        "add_dummy_prefix": True,
    },
    "nfkc": {"normalization_rule_name": "nfkc"},
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc"},
    "nmt_nfkc prefix": {"normalization_rule_name": "nmt_nfkc", "add_dummy_prefix": True},
    "nmt_nfkc strip prefix no fallback": {
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
        "add_dummy_prefix": True,
        "byte_fallback": False,
    },
    "nmt_nfkc_cf": {"normalization_rule_name": "nmt_nfkc_cf", "add_dummy_prefix": True},
    "user-defined": {"normalization_rule_name": "identity", "user_defined_symbols": USER_DEFINED},
    "user-defined nmt_nfkc": {
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": True,
        "user_defined_symbols": USER_DEFINED,
    },
    "whitespace pieces": {
        "normalization_rule_name": "identity",
        "allow_whitespace_only_pieces": True,
        "split_by_whitespace": False,
    },
}


def build(folder: Path, **changed: Any) -> tuple[PolyLMTokenizer, TokenizerSettings, Any]:
    """A trained tokenizer, its settings, and its tokenizer.json loaded."""
    values = {"byte_fallback": True, "add_dummy_prefix": False, "normalization_rule_name": "identity", **changed}
    file = folder / "tokenizer.model"
    file.write_bytes(train(**values))
    tokenizer = PolyLMTokenizer(file)
    found = read_settings(tokenizer)
    return tokenizer, found, load_converted(json.dumps(tokenizer_json(found)))


def sample(offset: int = 0) -> list[tuple[str, str]]:
    return corpus()[offset::SAMPLE]


@functools.cache
def corpus() -> list[tuple[str, str]]:
    return list(corpus_strings())


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("case", MATRIX)
def test_ids_and_text_are_those_of_sentencepiece(case: str, model_type: str, tmp_path: Path) -> None:
    tokenizer, found, converted = build(tmp_path, model_type=model_type, **MATRIX[case])
    report = compare_tokenizers(tokenizer, converted, sample(len(case) % SAMPLE))
    assert found.model_type == model_type
    assert report.total > 1500
    assert [str(difference) for difference in report.faults] == []
    if model_type == "bpe":
        assert report.differences == []
        assert expected_differences(found) == []


def test_whole_corpus_on_the_tiny_snapshots_tokenizer() -> None:
    tokenizer = PolyLMTokenizer.from_pretrained(Path(__file__).parents[2] / "modelscope_polylm" / "tiny")
    start = time.process_time()
    report = compare_tokenizers(tokenizer, load_converted(json.dumps(tokenizer_json(read_settings(tokenizer)))))
    assert time.process_time() - start < 20  # of all threads together
    assert report.total >= 20_000
    assert len([kind for kind in report.compared if kind.startswith("natural")]) == 18
    assert report.differences == []


@pytest.fixture(scope="module")
def bpe_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[PolyLMTokenizer, Any]:
    tokenizer, _, converted = build(tmp_path_factory.mktemp("bpe"), model_type="bpe", add_dummy_prefix=True)
    converted.encode_special_tokens = True
    return tokenizer, converted


@given(text=st.text())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text(bpe_pair: tuple[PolyLMTokenizer, Any], text: str) -> None:
    tokenizer, converted = bpe_pair
    ids = tokenizer.encode(text)
    assert converted.encode(text, add_special_tokens=False).ids == ids
    assert converted.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)


def test_random_ids_decode_alike_where_their_bytes_are_text(bpe_pair: tuple[PolyLMTokenizer, Any]) -> None:
    tokenizer, converted = bpe_pair
    source = random.Random(0)
    plain = [id for id in range(tokenizer.vocab_size) if tokenizer.byte_value(id) is None and id not in (1, 2)]
    for _ in range(500):
        ids = source.choices(plain, k=source.randint(1, 8))
        assert converted.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
        assert converted.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_special_tokens_are_left_out_of_text_as_asked(bpe_pair: tuple[PolyLMTokenizer, Any]) -> None:
    tokenizer, converted = bpe_pair
    ids = [1, *tokenizer.encode("Paris"), 2]
    assert converted.decode(ids, skip_special_tokens=True) == "Paris"
    assert converted.decode(ids, skip_special_tokens=False) == "<s> Paris</s>"


def test_text_that_spells_a_control_token(bpe_pair: tuple[PolyLMTokenizer, Any]) -> None:
    tokenizer, converted = bpe_pair
    text = "a</s>b"
    assert 2 not in tokenizer.encode(text)
    fresh = Tokenizer.from_str(converted.to_str())
    assert 2 in fresh.encode(text).ids
    fresh.encode_special_tokens = True
    assert fresh.encode(text).ids == tokenizer.encode(text)


NORMALIZERS = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")


def character_maps(name: str, folder: Path) -> tuple[Any, Any, list[str]]:
    """A normalizer of `tokenizers` and one of SentencePiece with the same rules, and what the rules rewrite."""
    _, found, _ = build(folder, vocab_size=2000, normalization_rule_name=name, model_type="bpe")
    reference = sentencepiece.SentencePieceNormalizer(
        rule_name=name, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
    )
    empty = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    steps = {"type": "Sequence", "normalizers": character_steps(found.character_map)}
    shell = {"version": "1.0", "added_tokens": [], "normalizer": steps, "model": empty}
    return Tokenizer.from_str(json.dumps(shell)).normalizer, reference, list(read_rules(found.character_map))


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZERS)
def test_character_map_whole(name: str, tmp_path: Path) -> None:
    ours, reference, rules = character_maps(name, tmp_path)
    every = (chr(code) for code in range(1, 0x110000) if not 0xD800 <= code <= 0xDFFF)
    assert [ascii(text) for text in (*every, *rules) if ours.normalize_str(text) != reference.normalize(text)] == []


@pytest.mark.parametrize("name", NORMALIZERS)
def test_character_map_step_by_step(name: str, tmp_path: Path) -> None:
    ours, reference, rules = character_maps(name, tmp_path)
    assert len(rules) > 200_000
    source = random.Random(name)
    several = [text for text in rules if len(text) > 1]
    single = [chr(code) for code in range(1, 0x1000)] + source.sample(rules, 1500)
    pools = [single, several, [text[1] for text in several], [*"ab e\r\n\t\ufff0\ufff1\ufff20\u2581\u200d\u0301"]]
    mixed = ["".join(source.choice(source.choice(pools)) for _ in range(source.randint(2, 9))) for _ in range(2500)]
    for text in [*single, *mixed]:
        assert ours.normalize_str(text) == reference.normalize(text), ascii(text)


def test_precompiled_alone_would_be_wrong(tmp_path: Path) -> None:
    """Why the steps are needed: the day this fails, they can go."""
    _, found, _ = build(tmp_path, vocab_size=2000, normalization_rule_name="nmt_nfkc", model_type="bpe")
    reference = sentencepiece.SentencePieceNormalizer(
        rule_name="nmt_nfkc", add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
    )
    text = "①\u0301"
    assert normalizers.Precompiled(found.character_map).normalize_str(text) != reference.normalize(text)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model_type": "char"}, "model type is char"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_models_that_cannot_be_converted_are_refused(changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=reason):
        build(tmp_path, vocab_size=2000, **changed)


def test_settings_of_a_model_file(tmp_path: Path) -> None:
    _, found, _ = build(tmp_path, model_type="unigram", normalization_rule_name="nfkc", add_dummy_prefix=True)
    assert (found.model_type, found.normalizer, found.byte_fallback) == ("unigram", "nfkc", True)
    assert (found.add_dummy_prefix, found.remove_extra_whitespaces, found.escape_whitespaces) == (True, False, True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert [piece.text for piece in found.pieces] == [processor.id_to_piece(id) for id in range(len(found.pieces))]
    assert [piece.score for piece in found.pieces] == [processor.get_score(id) for id in range(len(found.pieces))]


def test_a_wrong_conversion_is_noticed(tmp_path: Path) -> None:
    tokenizer, found, _ = build(tmp_path, model_type="bpe")
    spoiled = tokenizer_json(found)
    spoiled["model"]["merges"].reverse()
    report = compare_tokenizers(tokenizer, load_converted(json.dumps(spoiled)), sample())
    assert isinstance(report, ParityReport)
    assert report.natural_faults
    assert "SentencePiece gives" in str(report.natural_faults[0])


def test_spoiled_file() -> None:
    with pytest.raises(SnapshotError, match="cannot be loaded"):
        load_converted("{}")
