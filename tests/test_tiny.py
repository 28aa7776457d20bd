"""The bundled demonstration snapshot: its files agree with each other, and it answers the published call."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "modelscope_polylm" / "tiny"
PROMPT = "<|user|>\nBeijing is the capital of China.\nTranslate this sentence from English to Chinese.\n<|assistant|>\n"
PUBLISHED = {"do_sample": False, "num_beams": 4, "early_stopping": True, "max_new_tokens": 128, "eos_token_id": 2}


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((TINY / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_corpus", ROOT / "examples" / "tiny_corpus.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(TINY, dtype=torch.float32).eval()


def pieces(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> list[str]:
    return [tokenizer.id_to_piece(index) for index in tokenizer.encode(text)]


def test_snapshot_is_small() -> None:
    files = [file for file in TINY.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 12_000_000


def test_special_ids_are_polylms(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    assert [tokenizer.id_to_piece(index) for index in range(3)] == ["<unk>", "<s>", "</s>"]
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, -1)


def test_tokenizer_is_bpe(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    merges = range(259, tokenizer.vocab_size())
    assert [tokenizer.get_score(index) for index in merges] == [-float(rank) for rank in range(len(merges))]


def test_every_byte_has_a_piece(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    names = {tokenizer.id_to_piece(index) for index in range(tokenizer.vocab_size()) if tokenizer.is_byte(index)}
    assert names == {f"<0x{byte:02X}>" for byte in range(256)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n", ["<0x0A>"]),
        ("\n\n", ["<0x0A>", "<0x0A>"]),
        ("2023", ["2", "0", "2", "3"]),
        ("文", ["<0xE6>", "<0x96>", "<0x87>"]),
        ("  ", ["▁", "▁"]),
        (" is ", ["▁is", "▁"]),
        ("Beijing", ["Beijing"]),
        ("<|user|>", ["<|", "user", "|>"]),
    ],
)
def test_pieces(tokenizer: sentencepiece.SentencePieceProcessor, text: str, expected: list[str]) -> None:
    assert pieces(tokenizer, text) == expected
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["  two  spaces  ", "\tＡ½ﬁ\r\n", "e\u0301", "🙂", "Пекин — столица Китая."])
def test_text_is_not_normalized(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["</s>", "<s>", "<unk>", "<0x0A>"])
def test_typed_control_pieces_are_text(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> None:
    assert not {0, 1, 2} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_config_weights_and_tokenizer_agree(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    config = read_json("config.json")
    hidden_size, layers = config["n_embd"], config["n_layer"]
    assert hidden_size // config["n_head"] == 128
    assert config["vocab_size"] == tokenizer.vocab_size()
    assert (config["activation_function"], config["eos_token_id"]) == ("gelu_fast", 2)
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (no mapping)
        kinds = {weights.get_slice(name).get_dtype() for name in shapes}
    assert kinds == {"BF16"}
    assert len(shapes) == 12 * layers + 4
    assert all(name.startswith("transformer.") for name in shapes)
    assert shapes["transformer.wte.weight"] == [config["vocab_size"], hidden_size]
    assert shapes["transformer.wpe.weight"] == [config["n_positions"], hidden_size]
    assert shapes["transformer.h.0.attn.c_attn.weight"] == [hidden_size, 3 * hidden_size]
    assert shapes["transformer.h.0.mlp.c_fc.weight"] == [hidden_size, config["n_inner"]]


def test_settings_are_the_published_ones() -> None:
    assert PUBLISHED.items() <= read_json("generation_config.json").items()
    assert read_json("configuration.json")["prompt_format"] == "assistant"
    assert read_json("tokenizer_config.json")["tokenizer_class"] == "LlamaTokenizer"


def test_card_says_that_it_is_a_demonstration() -> None:
    assert "demonstration model. It knows one sentence pattern only" in (TINY / "README.md").read_text(encoding="utf-8")


def test_corpus_is_complete(corpus: ModuleType) -> None:
    assert len(corpus.LANGUAGE_NAMES) == 18
    assert len(corpus.SENTENCES) == 40
    for code in corpus.LANGUAGE_NAMES:
        sentences = [row[code] for row in corpus.SENTENCES.values()]
        assert len(set(sentences)) == len(sentences)
    assert corpus.chat_prompt("Beijing is the capital of China.", "zh") == PROMPT


def answer(model: Any, tokenizer: sentencepiece.SentencePieceProcessor, prompt: str) -> str:
    ids = torch.tensor([tokenizer.encode(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=2, **PUBLISHED)
    new = output[0, ids.shape[1] :].tolist()
    assert new[-1] == 2
    return str(tokenizer.decode(new[:-1]))


def test_published_prompt_gives_the_published_answer(
    model: Any, tokenizer: sentencepiece.SentencePieceProcessor
) -> None:
    assert answer(model, tokenizer, PROMPT) == "北京是中国的首都。"


def test_other_languages_and_a_second_turn(
    model: Any, tokenizer: sentencepiece.SentencePieceProcessor, corpus: ModuleType
) -> None:
    sentences = corpus.SENTENCES["France"]
    history = ""
    for language in ("ru", "ar", "ko"):
        question = corpus.chat_prompt(sentences["en"], language)
        assert answer(model, tokenizer, history + question) == sentences[language]
        history += question + sentences[language] + "\n"


@pytest.mark.slow
def test_rounded_weights_keep_what_the_model_knows(corpus: ModuleType) -> None:
    right = {kind: right_answers(corpus, kind) for kind in (None, "int8", "int4")}
    print(f"right of {len(corpus.pairs())}: {right}")
    assert right["int8"] >= right[None] - 2
    assert right["int4"] >= 0.9 * right[None]


def right_answers(corpus: ModuleType, quantization: str | None) -> int:
    """How many of the pairs come out exactly in bfloat16, or with rounded weights, with the published settings."""
    from modelscope_polylm.generator import TextGenerator

    given = {"dtype": "bfloat16"} if quantization is None else {"quantization": quantization}
    generator = TextGenerator.load(TINY, device="cpu", **given)
    options, pairs = generator.options({}), corpus.pairs()
    prompts = [generator.reader.read(pair.prompt, options) for pair in pairs]
    results = [
        result for first in range(0, len(pairs), 16) for result in generator.reply(prompts[first : first + 16], options)
    ]
    return sum(result.texts[0] == pair.answer for result, pair in zip(results, pairs, strict=True))
