from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_polylm.errors import InputError
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

from .conftest import GRID, SPECIAL

# What decoding depends on: the whitespace flags and the kinds of pieces, not the model type or the normalizer's rules.
NAMES = [
    *(name for name in GRID if name.startswith("bpe-identity")),
    "unigram-nmt_nfkc-dummy-bytes-keep",
    "unigram-nmt_nfkc-plain-unk-trim",
    *SPECIAL,
    "denormalizer",
]
BYTES = [
    0x00,
    0x0A,
    0x41,
    0x80,
    0xAD,
    0xB8,
    0xBF,
    0xC0,
    0xC3,
    0xE0,
    0xE4,
    0xED,
    0xEF,
    0xF0,
    0x9F,
    0x98,
    0xF4,
    0xF8,
    0xFF,
]


def stream(detokenizer: IncrementalDetokenizer, ids: Iterable[int]) -> list[str]:
    return [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]


def likely_ids(tokenizer: PolyLMTokenizer) -> list[int]:
    """The ids whose treatment depends on their neighbours: specials, bytes, pieces with spaces."""
    pieces = [tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size)]
    spaces = [token for token, piece in enumerate(pieces) if piece.startswith("\u2581")][:6]
    spaces += [token for token, piece in enumerate(pieces) if piece.strip("\u2581") == ""]
    found = [token for token, piece in enumerate(pieces) if piece in {f"<0x{value:02X}>" for value in BYTES}]
    return [*tokenizer.special_ids, *spaces, *found]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data())
def test_equals_decode_of_all_ids(tokenizers: dict[str, PolyLMTokenizer], name: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[name]
    some_id = st.one_of(st.sampled_from(likely_ids(tokenizer)), st.integers(0, tokenizer.vocab_size - 1))
    prefix = data.draw(st.lists(some_id, max_size=6), label="prefix")
    chunks = data.draw(st.lists(st.lists(some_id, max_size=4), max_size=10), label="chunks")
    skip = data.draw(st.booleans(), label="skip_special_tokens")
    detokenizer = IncrementalDetokenizer(tokenizer, prefix, skip_special_tokens=skip)
    text = "".join([*map(detokenizer.push, chunks), detokenizer.finish()])
    ids = [token for chunk in chunks for token in chunk]
    assert text == tokenizer.decode(prefix + ids, skip)[len(tokenizer.decode(prefix, skip)) :]


@pytest.mark.parametrize("name", NAMES)
def test_every_short_sequence_of_ids_with_memory(tokenizers: dict[str, PolyLMTokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    find = tokenizer.processor.piece_to_id
    hard = [find(piece) for piece in ("</s>", "\u2581", "\u2581the", "\u2581\u2581", "a", "<0xC3>", "<0xA9>", "<0x0A>")]
    for ids in itertools.product(dict.fromkeys([tokenizer.unk_token_id, *hard]), repeat=3):
        for skip in (True, False):
            text = "".join(stream(IncrementalDetokenizer(tokenizer, skip_special_tokens=skip), ids))
            assert text == tokenizer.decode(ids, skip), ids


@pytest.mark.parametrize("name", ["bpe-identity-plain-bytes-keep", "unigram-nmt_nfkc-dummy-bytes-trim", "characters"])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_never_emits_half_a_character(tokenizers: dict[str, PolyLMTokenizer], name: str, text: str) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text)
    parts = stream(IncrementalDetokenizer(tokenizer), ids)
    assert "".join(parts) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(parts)
    assert parts[-1] == ""


def test_a_character_comes_with_its_last_byte(tokenizer: PolyLMTokenizer) -> None:
    ids = [tokenizer.processor.piece_to_id(f"<0x{value:02X}>") for value in "é😀\n".encode()]
    assert stream(IncrementalDetokenizer(tokenizer), ids) == ["", "é", "", "", "", "😀", "\n", ""]


def test_bytes_that_are_no_character_come_at_once_or_at_the_end(tokenizer: PolyLMTokenizer) -> None:
    def ids(content: bytes) -> list[int]:
        return [tokenizer.processor.piece_to_id(f"<0x{value:02X}>") for value in content]

    assert stream(IncrementalDetokenizer(tokenizer), ids(b"\x80\xff")) == ["\ufffd", "\ufffd", ""]
    assert stream(IncrementalDetokenizer(tokenizer), ids(b"\xe4\xb8")) == ["", "", "\ufffd\ufffd"]
    assert stream(IncrementalDetokenizer(tokenizer), ids(b"\xe4\xb8A")) == ["", "", "\ufffd\ufffdA", ""]


def test_a_token_is_given_at_once(tokenizer: PolyLMTokenizer) -> None:
    ids = tokenizer.encode("Beijing is the capital")
    parts = stream(IncrementalDetokenizer(tokenizer), ids)
    assert all(parts[:-1]) and parts[-1] == ""


@pytest.mark.parametrize("name", ["bpe-identity-dummy-bytes-keep", "bpe-identity-dummy-bytes-trim"])
def test_leading_space_goes_at_the_start_and_stays_after_a_prompt(
    tokenizers: dict[str, PolyLMTokenizer], name: str
) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode("the capital")
    assert "".join(stream(IncrementalDetokenizer(tokenizer), ids)) == "the capital"
    prompt = tokenizer.encode("Beijing is")
    assert "".join(stream(IncrementalDetokenizer(tokenizer, prompt), ids)) == " the capital"


def test_control_and_unknown_ids(tokenizer: PolyLMTokenizer) -> None:
    first, second = tokenizer.encode("a"), tokenizer.encode("b")
    ids = [1, *first, 2, *second, 0]
    assert "".join(stream(IncrementalDetokenizer(tokenizer), ids)) == "ab"
    assert "".join(stream(IncrementalDetokenizer(tokenizer, skip_special_tokens=False), ids)) == "ab \u2047 "


def test_denormalizer_rules_may_span_tokens(tokenizers: dict[str, PolyLMTokenizer]) -> None:
    tokenizer = tokenizers["denormalizer"]
    ids = [*tokenizer.encode("a"), *tokenizer.encode("中国"), *tokenizer.encode("ab")]
    assert tokenizer.anchor_id is None
    assert "X" in tokenizer.decode(ids) and "Z" in tokenizer.decode(ids)
    detokenizer = IncrementalDetokenizer(tokenizer, ids[:2])
    assert detokenizer.push(ids[2:]) == ""
    assert detokenizer.finish() == tokenizer.decode(ids)[len(tokenizer.decode(ids[:2])) :]


@pytest.mark.parametrize("bad", [[600], [-1], ["a"], [1.5], 7, None])
def test_bad_ids(tokenizer: PolyLMTokenizer, bad: object) -> None:
    with pytest.raises(InputError):
        IncrementalDetokenizer(tokenizer).push(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        IncrementalDetokenizer(tokenizer, bad)  # type: ignore[arg-type]


class CountingProcessor:
    """Passes decode on and counts the ids that it was given."""

    def __init__(self, processor: object) -> None:
        self.processor = processor
        self.ids = 0

    def decode(self, ids: list[int]) -> str:
        self.ids += len(ids)
        return self.processor.decode(ids)  # type: ignore[attr-defined, no-any-return]

    def __getattr__(self, name: str) -> object:
        return getattr(self.processor, name)


def hard_streams(tokenizer: PolyLMTokenizer, count: int) -> dict[str, list[int]]:
    piece_id = tokenizer.processor.piece_to_id
    return {
        "text": (tokenizer.encode("Beijing is the capital of China. 北京😀\n") * count)[:count],
        "lone lead bytes": [piece_id("<0xE4>")] * count,
        "lone trail bytes": [piece_id("<0x80>")] * count,
        "control ids": [1] * count,
        "spaces": [piece_id("\u2581")] * count,
    }


@pytest.mark.parametrize("name", ["bpe-identity-plain-bytes-keep", "bpe-identity-dummy-bytes-trim"])
def test_work_is_linear(tokenizers: dict[str, PolyLMTokenizer], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, count = tokenizers[name], 20_000
    for kind, ids in hard_streams(tokenizer, count).items():
        expected = tokenizer.decode(ids)
        with monkeypatch.context() as patch:
            counter = CountingProcessor(tokenizer.processor)
            patch.setattr(tokenizer, "processor", counter)
            start = time.perf_counter()
            text = "".join(stream(IncrementalDetokenizer(tokenizer, skip_special_tokens=False), ids))
            seconds = time.perf_counter() - start
        assert text == expected, kind
        assert counter.ids <= 5 * count, kind
        assert seconds < 5, kind
