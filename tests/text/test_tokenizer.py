from __future__ import annotations

import threading
from pathlib import Path

import numpy
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_polylm.errors import InputError, SnapshotError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

from .conftest import GRID, SPECIAL, train

NAMES = [*GRID, *SPECIAL, "denormalizer"]
# In these files SentencePiece itself encodes text to the end piece, which this tokenizer must not do.
FORGEABLE = {"user-defined-end", "user-defined-end-unigram"}
TEXTS = [
    "",
    " ",
    "   leading and   inner  spaces ",
    "\n",
    "a\nb\r\n\tc",
    "Beijing is the capital of China.\nTranslate this sentence from English to Chinese.",
    "北京是中国的首都。東京は日本の首都です。서울",
    "القاهرة هي عاصمة مصر ירושלים กรุงเทพฯ",
    "<|user|>\nHi\n<|assistant|>\n",
    "1234567890 ½ ﬁ ＡＢＣ é e\u0301",
    "😀👨\u200d👩\u200d👧 \U0001f1e8\U0001f1f3 \x00 \ufffd \u2581 \ufeff",
    "<0x0A><0x41>",
    "x" * 5000,
]
CONTROL_TEXTS = [
    "</s>",
    "<s>",
    "<unk>",
    "a</s>b",
    "</s></s>",
    " </s> ",
    "<s>x</s>",
    "\n</s>\n",
    "＜/s＞",
    "<pad>",
    "<ctl>",
]


def reference(tokenizer: PolyLMTokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_file))


@pytest.mark.parametrize("name", NAMES)
def test_encode_and_decode_are_sentencepiece(tokenizers: dict[str, PolyLMTokenizer], name: str) -> None:
    tokenizer, processor = tokenizers[name], reference(tokenizers[name])
    for text in TEXTS + ([] if name in FORGEABLE else CONTROL_TEXTS):
        ids = tokenizer.encode(text)
        assert ids == processor.encode(text), text
        assert tokenizer.decode(ids) == processor.decode(ids), text


@pytest.mark.parametrize("name", ["bpe-identity-plain-bytes-keep", "unigram-nmt_nfkc-dummy-unk-trim"])
@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_encoded_as_by_sentencepiece(tokenizers: dict[str, PolyLMTokenizer], name: str, text: str) -> None:
    assert tokenizers[name].encode(text) == tokenizers[name].processor.encode(text)


@pytest.mark.parametrize("name", NAMES)
def test_text_never_becomes_a_control_id(tokenizers: dict[str, PolyLMTokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    forbidden = tokenizer.special_ids - {tokenizer.unk_token_id}
    for text in CONTROL_TEXTS:
        assert not forbidden & set(tokenizer.encode(text)), text
    assert tokenizer.unk_token_id not in tokenizer.encode("") + tokenizer.encode(" ")


@pytest.mark.parametrize("name", sorted(FORGEABLE))
def test_a_user_defined_end_piece_is_text_and_still_decodes(tokenizers: dict[str, PolyLMTokenizer], name: str) -> None:
    tokenizer, processor = tokenizers[name], reference(tokenizers[name])
    assert tokenizer.eos_token_id == 2 and 2 in tokenizer.special_ids
    assert 2 in processor.encode("a</s>b")
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b"
    assert tokenizer.decode([2]) == processor.decode([2]) == "</s>"
    for text in TEXTS:
        assert tokenizer.encode(text) == processor.encode(text), text


def test_special_ids_and_pieces(tokenizers: dict[str, PolyLMTokenizer]) -> None:
    plain, other = tokenizers["bpe-identity-plain-bytes-keep"], tokenizers["user-defined"]
    assert (plain.unk_token_id, plain.bos_token_id, plain.eos_token_id) == (0, 1, 2)
    assert plain.special_ids == {0, 1, 2}
    control = other.processor.piece_to_id("<ctl>")
    assert other.special_ids == {0, 1, 2, 3, control}
    assert plain.id_to_piece(2) == "</s>" and len(plain) == plain.vocab_size == 600


def test_piece_bytes_are_what_the_pieces_decode_to(tokenizers: dict[str, PolyLMTokenizer]) -> None:
    tokenizer = tokenizers["bpe-identity-plain-bytes-keep"]
    newline = tokenizer.processor.piece_to_id("<0x0A>")
    assert tokenizer.piece_bytes(newline) == b"\n" and tokenizer.byte_value(newline) == 10
    assert tokenizer.piece_bytes(2) is None and tokenizer.piece_bytes(0) is None
    ids = tokenizer.encode("a 北京\n😀 b")
    assert b"".join(tokenizer.piece_bytes(token) or b"" for token in ids).decode() == "a 北京\n😀 b"


def test_skip_special_tokens_drops_them_before_decoding(tokenizer: PolyLMTokenizer) -> None:
    ids = tokenizer.encode("a b")
    assert tokenizer.decode([1, *ids, 0, 2], skip_special_tokens=True) == "a b"
    assert tokenizer.decode([*ids, 0]) == "a b \u2047 "
    assert tokenizer.decode([0, 1, 2], skip_special_tokens=True) == ""


def test_ids_may_be_numpy_or_torch(tokenizer: PolyLMTokenizer) -> None:
    ids = tokenizer.encode("Beijing")
    assert (
        tokenizer.decode(numpy.array(ids))
        == tokenizer.decode(torch.tensor(ids))
        == tokenizer.decode(iter(ids))
        == "Beijing"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not NoneType"),
        (b"abc", "not bytes.*decode"),
        (7, "not int"),
        (["a"], "not list"),
        ("ab\ud800c", "U[+]D800 at character 2"),
        ("\udc80", "U[+]DC80 at character 0"),
    ],
)
def test_bad_text(tokenizer: PolyLMTokenizer, text: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.encode(text)  # type: ignore[arg-type]
    assert tokenizer.decode(tokenizer.encode("still works")) == "still works"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, -1], "-1 at position 1"),
        ([600], "600 at position 0 .* 0 to 599"),
        ([2**40], "not one of"),
        ([1.5], "not a whole number"),
        (["a"], "not a whole number"),
        ([None], "not a whole number"),
        ([[5]], "not a whole number"),
        ([True], "True at position 0"),
        (5, "must be a sequence"),
        (None, "must be a sequence"),
        ("abc", "must be a sequence"),
        (b"abc", "must be a sequence"),
    ],
)
def test_bad_ids(tokenizer: PolyLMTokenizer, ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.decode(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["id_to_piece", "piece_bytes"])
def test_bad_single_id(tokenizer: PolyLMTokenizer, method: str) -> None:
    with pytest.raises(InputError, match="600"):
        getattr(tokenizer, method)(600)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"<html>not found</html>", "cannot load"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "git lfs pull"),
    ],
)
def test_broken_model_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(SnapshotError, match=message):
        PolyLMTokenizer.from_pretrained(tmp_path)


def test_model_file_cut_off_anywhere(tmp_path: Path) -> None:
    # Without byte pieces SentencePiece takes a file that ends between two pieces or settings.
    cut = train(tmp_path / "tokenizer.model", byte_fallback=False)
    content = cut.read_bytes()
    for size in range(1, len(content), 7):
        cut.write_bytes(content[:size])
        with pytest.raises(SnapshotError, match=f"{size} bytes"):
            PolyLMTokenizer(cut)


def test_missing_model_file(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"tokenizer\.model is missing: download the snapshot again"):
        PolyLMTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(SnapshotError, match="cannot be read: it is a folder"):
        PolyLMTokenizer.from_pretrained(tmp_path)


def test_model_without_end_piece(tmp_path: Path) -> None:
    path = train(tmp_path / "tokenizer.model", eos_id=-1)
    with pytest.raises(SnapshotError, match="no end piece"):
        PolyLMTokenizer(path)


def test_end_piece_of_another_name(tmp_path: Path) -> None:
    tokenizer = PolyLMTokenizer(train(tmp_path / "tokenizer.model", eos_piece="[END]", bos_id=-1))
    assert tokenizer.id_to_piece(tokenizer.eos_token_id) == "[END]" and tokenizer.bos_token_id is None


def test_threads_share_one_tokenizer(tokenizer: PolyLMTokenizer) -> None:
    expected = [tokenizer.encode(text) for text in TEXTS]
    failures: list[str] = []

    def work() -> None:
        for _ in range(50):
            for text, ids in zip(TEXTS, expected, strict=True):
                if tokenizer.encode(text) != ids or tokenizer.decode(ids) != tokenizer.processor.decode(ids):
                    failures.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.fixture(scope="module")
def tiny_tokenizer() -> PolyLMTokenizer:
    return PolyLMTokenizer.from_pretrained(TINY_FOLDER)


def test_called_like_other_tokenizers(tiny_tokenizer: PolyLMTokenizer) -> None:
    ids = [tiny_tokenizer.encode(text) for text in ("Rome", "Rome is the capital of Italy.")]
    assert tiny_tokenizer("Rome") == {"input_ids": ids[0], "attention_mask": [1] * len(ids[0])}
    assert tiny_tokenizer(["Rome", "Rome is the capital of Italy."])["input_ids"] == ids
    padded = tiny_tokenizer(["Rome", "Rome is the capital of Italy."], padding=True, return_tensors="pt")
    fill = len(ids[1]) - len(ids[0])
    assert padded["input_ids"].tolist() == [[2] * fill + ids[0], ids[1]]
    assert padded["attention_mask"].tolist() == [[0] * fill + [1] * len(ids[0]), [1] * len(ids[1])]
    with pytest.raises(InputError, match="pass padding=True"):
        tiny_tokenizer(["Rome", "Rome is"], return_tensors="pt")
    with pytest.raises(InputError, match="return_tensors='np' is unknown"):
        tiny_tokenizer("Rome", return_tensors="np")
    with pytest.raises(InputError, match="must be a str"):
        tiny_tokenizer([5])  # type: ignore[list-item]


def test_chat_template(tiny_tokenizer: PolyLMTokenizer) -> None:
    messages = [{"role": "user", "content": "Rome"}]
    with pytest.raises(InputError, match="pass release= or prompt_format="):
        tiny_tokenizer.apply_chat_template(messages)
    text = "<|user|>\nRome\n<|assistant|>\n"
    assert tiny_tokenizer.apply_chat_template(messages, prompt_format="assistant", tokenize=False) == text
    own = open_snapshot(TINY_FOLDER).tokenizer
    assert own.apply_chat_template(messages, tokenize=False) == text
    assert own.apply_chat_template(messages) == own.encode(text)
    for wrong, message in (
        ({"prompt_format": "asistant"}, "did you mean assistant"),
        ({"add_generation_prompt": False}, "always end where the answer begins"),
    ):
        with pytest.raises(InputError, match=message):
            own.apply_chat_template(messages, **wrong)
    with pytest.raises(InputError, match="not trained with"):
        own.apply_chat_template([{"role": "system", "content": "x"}, *messages])
