"""Writes snapshots of random weights in a published shape, for the benchmarks that start from files."""

from __future__ import annotations

import functools
import json
import math
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor

from modelscope_polylm.cli.bench.workloads import shape_config
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.network.weights import HEAD, PREFIX, PROJECTION, declared_shapes

SHARD_BYTES = 5_000_000_000
LAYOUTS = {"safetensors": "model", "bin": "pytorch_model"}
"""Suffix of the weight files to the beginning of their names."""

PERIOD = 1 << 24
"""Random numbers after which those of a matrix begin again."""

Shapes = dict[str, tuple[int, ...]]
"""Name to shape of tensors as they are stored."""


def write_snapshot(folder: Path, shape: str, layout: str) -> None:
    """Write bf16 weights in shards of at most 5 GB, config.json, and a tokenizer of the whole vocabulary.

    Raises:
        OSError: the disk has too little room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_space(folder, stored_bytes(shape, layout))
    (folder / "config.json").write_text(json.dumps(shape_config(shape).to_dict()))
    (folder / "tokenizer.model").write_bytes(_tokenizer_model(shape_config(shape).vocab_size))
    shards, stem, index = planned_shards(shape, layout), LAYOUTS[layout], {}
    for number, shard in enumerate(shards, 1):
        file = folder / f"{stem}-{number:05d}-of-{len(shards):05d}.{layout}"
        tensors = {name: _random_tensor(size) for name, size in shard.items()}
        save_file(tensors, file) if layout == "safetensors" else torch.save(tensors, file)
        index.update(dict.fromkeys(shard, file.name))
    (folder / f"{stem}.{layout}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _tokenizer_model(vocab_size: int) -> bytes:
    """The bundled model's tokenizer, with made-up words up to the vocabulary's size.

    Pieces are a repeated field of SentencePiece's ModelProto, so that more of them can follow at the file's end.
    """
    own = (TINY_FOLDER / "tokenizer.model").read_bytes()
    present = SentencePieceProcessor(model_proto=own).vocab_size()
    return own + b"".join(_piece(f"\u2581word{number}") for number in range(present, vocab_size))


def _piece(text: str) -> bytes:
    """Field 1 of ModelProto: a SentencePiece of a text and a score."""
    content = text.encode()
    message = bytes([0x0A, len(content)]) + content + b"\x15" + struct.pack("<f", -1e6)
    return bytes([0x0A, len(message)]) + message


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError unless so many bytes fit on the folder's disk."""
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{folder} has room for {free / 1e9:.1f} GB and needs {needed / 1e9:.1f} GB: choose another folder."
        )


def stored_bytes(shape: str, layout: str) -> int:
    """Bytes of the tensors on disk, in bf16."""
    return _size(stored_shapes(shape, layout))


def stored_shapes(shape: str, layout: str) -> Shapes:
    """What the files hold; pickles also hold the causal masks and the second LM head of the published ones."""
    config, shapes = shape_config(shape), {}
    for name, size in declared_shapes(config).items():
        shapes[f"{PREFIX}{name}"] = size[::-1] if PROJECTION.fullmatch(name) else size
    if layout == "bin":
        for layer in range(config.layers):
            shapes[f"{PREFIX}h.{layer}.attn.bias"] = (1, 1, config.max_positions, config.max_positions)
        shapes[HEAD] = shapes[f"{PREFIX}wte.weight"]
    return shapes


def planned_shards(shape: str, layout: str) -> list[Shapes]:
    """The tensors of each file."""
    shards: list[Shapes] = [{}]
    for name, size in stored_shapes(shape, layout).items():
        if _size({**shards[-1], name: size}) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = size
    return shards


def _size(shapes: Shapes) -> int:
    return sum(2 * math.prod(shape) for shape in shapes.values())


def _random_tensor(shape: tuple[int, ...]) -> torch.Tensor:
    """Random numbers; in matrices the same ones, repeated: as good for timing, and made in seconds on a CPU."""
    # -> shape, bf16
    if len(shape) == 1:  # a bias that begins as the embedding does would always choose its first token
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)
    drawn, tensor = _random_numbers(), torch.empty(math.prod(shape), dtype=torch.bfloat16)
    for part in tensor.split(len(drawn)):
        part.copy_(drawn[: len(part)])
    return tensor.view(shape)


@functools.cache
def _random_numbers() -> torch.Tensor:
    return torch.empty(PERIOD, dtype=torch.bfloat16).normal_(0, 0.02)
