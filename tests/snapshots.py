"""Builds small random snapshots in every layout in which PolyLM weights are found."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from modelscope_polylm.network.config import PolyLMConfig

LAYOUTS = ("bin", "bin-sharded", "safetensors", "safetensors-sharded")
CONFIGURATION = {
    "framework": "pytorch",
    "task": "text-generation",
    "model": {"type": "polylm"},
    "pipeline": {"type": "polylm-text-generation"},
}
TOKENIZER_CONFIG = {
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "legacy": False,
    "model_max_length": 2048,
    "pad_token": None,
    "tokenizer_class": "LlamaTokenizer",
}
SENTENCES = (
    "Beijing is the capital of China.",
    "Translate this sentence from English to Chinese.",
    "北京是中国的首都。",
    "Paris est la capitale de la France.",
    "Moskau ist die Hauptstadt Russlands, 1147 zum ersten Mal erwähnt.",
    "東京は日本の首都です。",
    "서울은 대한민국의 수도이다.",
    "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "القاهرة هي عاصمة مصر.",
    "Ha Noi là thủ đô của Việt Nam.",
)


@functools.lru_cache
def tokenizer_bytes(vocab_size: int = 512, model_type: str = "bpe", add_dummy_prefix: bool = False) -> bytes:
    """A SentencePiece model trained like PolyLM's: byte fallback, digits split one by one, newline as a byte piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        character_coverage=0.995,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def random_model(
    vocab_size: int = 512,
    width: int = 256,
    heads: int = 2,
    layers: int = 2,
    positions: int = 256,
    seed: int = 0,
    spread: float = 0.1,
    eos_in_config: int | None = None,
) -> GPT2LMHeadModel:
    """A GPT-2 whose every tensor, biases and norms included, is random with deviation `spread`.

    As in the published snapshots, `bos_token_id` and `eos_token_id` of its config are the vocabulary's last, wrong id.
    """
    end = vocab_size - 1 if eos_in_config is None else eos_in_config
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_fast",
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    model: GPT2LMHeadModel = GPT2LMHeadModel(config)
    model.train(False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + center)
    return model


def build_snapshot(
    folder: str | Path,
    layout: str = "bin",
    dtype: torch.dtype = torch.float32,
    vocab_size: int | None = None,
    width: int = 256,
    heads: int = 2,
    layers: int = 2,
    positions: int = 256,
    seed: int = 0,
    spread: float = 0.1,
    eos_in_config: int | None = None,
    shards: int = 3,
    prefix: str = "transformer.",
    tokenizer: bytes | None = None,
) -> Path:
    """Write a random snapshot as the hub holds them and return its folder.

    Args:
        layout: one of LAYOUTS. The `.bin` ones carry the causal masks, and `bin-sharded` a second copy of the embedding
            as `lm_head.weight`, like the published 13B.
        vocab_size: rows of the embedding; the size of the tokenizer if None.
        prefix: what stands before the tensor names, "transformer." or "".
        tokenizer: bytes of tokenizer.model; `tokenizer_bytes()` if None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_bytes() if tokenizer is None else tokenizer
    if vocab_size is None:
        vocab_size = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).vocab_size()
    model = random_model(vocab_size, width, heads, layers, positions, seed, spread, eos_in_config)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(folder / "configuration.json", CONFIGURATION)
    write_json(folder / "config.json", published_config(model, dtype))
    tensors = checkpoint_tensors(model, dtype, prefix, masks=layout.startswith("bin"), head=layout == "bin-sharded")
    write_weights(folder, layout, tensors, shards)
    return folder


def published_config(model: GPT2LMHeadModel, dtype: torch.dtype) -> dict[str, object]:
    """config.json as transformers 4.31 wrote it for the published snapshots."""
    config = model.config
    return {
        "activation_function": "gelu_fast",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": config.bos_token_id,
        "embd_pdrop": 0.0,
        "eos_token_id": config.eos_token_id,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": None,
        "n_layer": config.n_layer,
        "n_positions": config.n_positions,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.31.0",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def checkpoint_tensors(
    model: GPT2LMHeadModel, dtype: torch.dtype, prefix: str = "transformer.", masks: bool = True, head: bool = False
) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, projections as Conv1D [in, out], with the 2023 files' extras on demand."""
    body = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.transformer.state_dict().items()}
    if masks:
        positions = model.config.n_positions
        for layer in range(model.config.n_layer):
            triangle = torch.ones(positions, positions, dtype=torch.bool).tril().view(1, 1, positions, positions)
            body[f"h.{layer}.attn.bias"] = triangle
            body[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors = {prefix + name: tensor for name, tensor in body.items()}
    return {**tensors, "lm_head.weight": body["wte.weight"].clone()} if head else tensors


def write_weights(folder: Path, layout: str, tensors: dict[str, Tensor], shards: int = 3) -> None:
    """Write tensors as one file, or as shards with their index, under the names that transformers uses."""
    stem, suffix = ("pytorch_model", ".bin") if layout.startswith("bin") else ("model", ".safetensors")
    if not layout.endswith("sharded"):
        _write_tensors(folder / f"{stem}{suffix}", tensors)
        return
    weight_map = {}
    names = list(tensors)
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file_name = f"{stem}-{number + 1:05d}-of-{shards:05d}{suffix}"
        _write_tensors(folder / file_name, {name: tensors[name] for name in part})
        weight_map.update(dict.fromkeys(part, file_name))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / f"{stem}{suffix}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, metadata={"format": "pt"})


def read_config(folder: Path) -> PolyLMConfig:
    """The sizes in a snapshot's config.json."""
    return PolyLMConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def write_json(file: Path, value: object) -> None:
    """Write a value as indented JSON, as the hub's files are."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
