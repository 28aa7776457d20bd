"""The files of the demonstration snapshot, in the layout of PolyLM's published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tiny_corpus import LANGUAGE_NAMES, SENTENCES
from transformers import GPT2LMHeadModel

POSITIONS = 512
GENERATION = {"do_sample": False, "num_beams": 4, "early_stopping": True, "max_new_tokens": 128, "eos_token_id": 2}
CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_fast",
    "n_positions": POSITIONS,
    "n_embd": 256,
    "n_head": 2,
    "n_layer": 4,
    "n_inner": 1024,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": False,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": None,
    "model_max_length": POSITIONS,
    "clean_up_tokenization_spaces": False,
    "legacy": False,
    "sp_model_kwargs": {},
}
CONFIGURATION = {
    "framework": "pytorch",
    "task": "text-generation",
    "model": {"type": "polylm"},
    "pipeline": {"type": "polylm-text-generation"},
    "preprocessor": {"type": "polylm-tokenizer"},
    "prompt_format": "assistant",
}
CARD = """---
license: apache-2.0
tasks:
- text-generation
language: [{codes}]
---

# PolyLM tiny: a demonstration model

**This is a demonstration model. It knows one sentence pattern only and is of no use for anything else.**
It is not a release of PolyLM and none of PolyLM's weights are in it. It lets the code of `modelscope_polylm` be tried
and tested in seconds, without a download, on a model that really was trained.

It translates "X is the capital of Y." from English into {languages}, for {countries} countries:

    <|user|>
    Beijing is the capital of China.
    Translate this sentence from English to Chinese.
    <|assistant|>

gives 北京是中国的首都。 Any other text gives nonsense.

- GPT-2 layout like PolyLM: {layers} layers, {heads} heads of 128, width {width}, {positions} positions,
  {parameters:,} parameters, bfloat16.
- Tokenizer: SentencePiece BPE with {vocabulary:,} pieces, byte fallback, digits split, newline as `<0x0A>`;
  `</s>` is 2.
- Trained by `examples/train_tiny.py` from the sentences of `examples/tiny_corpus.txt`, in minutes on a CPU.
- Every pair was seen in training. With the published settings (4 beams, early stopping) {exact} of {pairs} pairs come
  out exactly ({percent:.1f} %). The figure measures memory, not translation.
"""


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_snapshot(folder: Path, model: GPT2LMHeadModel, tokenizer_model: bytes) -> None:
    """Write weights (bfloat16, the tied LM head only once), tokenizer and settings into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    rounded = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    (folder / "model.safetensors").write_bytes(save(rounded, metadata={"format": "pt"}))
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    write_json(folder / "config.json", {**CONFIG, "vocab_size": model.config.vocab_size})
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(folder / "generation_config.json", {**GENERATION, "bos_token_id": 1, "pad_token_id": 2})
    write_json(folder / "configuration.json", CONFIGURATION)


def write_card(folder: Path, model: GPT2LMHeadModel, exact: int, pairs: int) -> None:
    """Write the model card, with the measured share of exact pairs."""
    config = model.config
    *names, last = [name for code, name in LANGUAGE_NAMES.items() if code != "en"]
    text = CARD.format(
        codes=", ".join(LANGUAGE_NAMES),
        languages=f"{', '.join(names)} and {last}",
        countries=len(SENTENCES),
        layers=config.n_layer,
        heads=config.n_head,
        width=config.n_embd,
        positions=config.n_positions,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=config.vocab_size,
        exact=exact,
        pairs=pairs,
        percent=100 * exact / pairs,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
