"""Writes a snapshot of random weights for `benchmarks.loading`."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from modelscope_polylm.cli.bench.workloads import shape_config
from modelscope_polylm.network.weights import HEAD, PREFIX, PROJECTION, declared_shapes

TOKENIZER = Path(__file__).parent.parent / "modelscope_polylm" / "tiny" / "tokenizer.model"
SHARD_BYTES = 5_000_000_000
LAYOUTS = {"safetensors": "model", "bin": "pytorch_model"}
"""Suffix of the files to the beginning of their names."""


def stored_bytes(shape: str, layout: str) -> int:
    """Bytes of the tensors on disk, in bf16."""
    return sum(2 * math.prod(size) for size in stored_shapes(shape, layout).values())


def stored_shapes(shape: str, layout: str) -> dict[str, tuple[int, ...]]:
    """Name to size of every tensor in the files; pickles hold what the releases' hold beside the weights, too."""
    config, shapes = shape_config(shape), {}
    for name, size in declared_shapes(config).items():
        shapes[f"{PREFIX}{name}"] = size[::-1] if PROJECTION.fullmatch(name) else size
    if layout == "bin":
        for layer in range(config.layers):
            shapes[f"{PREFIX}h.{layer}.attn.bias"] = (1, 1, config.max_positions, config.max_positions)
        shapes[HEAD] = shapes[f"{PREFIX}wte.weight"]
    return shapes


def write_snapshot(folder: Path, shape: str, layout: str) -> None:
    """Random bf16 weights of a published shape as safetensors or .bin shards, with a small tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape_config(shape).to_dict()))
    shutil.copy(TOKENIZER, folder)
    shards, stem, index = planned_shards(shape, layout), LAYOUTS[layout], {}
    made: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for number, shard in enumerate(shards, 1):
        file = folder / f"{stem}-{number:05d}-of-{len(shards):05d}.{layout}"
        tensors = shard_tensors(shard, made)
        save_file(tensors, file) if layout == "safetensors" else torch.save(tensors, file)
        index.update(dict.fromkeys(shard, file.name))
    (folder / f"{stem}.{layout}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def planned_shards(shape: str, layout: str) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of each file: name to stored size."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, size in stored_shapes(shape, layout).items():
        if sum(2 * math.prod(each) for each in [*shards[-1].values(), size]) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = size
    return shards


def shard_tensors(
    shard: dict[str, tuple[int, ...]], made: dict[tuple[int, ...], list[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The tensors of a file, each with memory of its own; those `made` for an earlier file are used again."""
    tensors, used = {}, Counter[tuple[int, ...]]()
    for name, size in shard.items():
        of_this_size = made.setdefault(size, [])
        if used[size] == len(of_this_size):
            of_this_size.append(random_tensor(size))
        tensors[name] = of_this_size[used[size]]
        used[size] += 1
    return tensors


def random_tensor(size: tuple[int, ...]) -> torch.Tensor:
    """Some random numbers, repeated: as good for timing as 14 billion, and made in seconds on a CPU."""
    # -> size, bf16
    drawn, tensor = _numbers(), torch.empty(math.prod(size), dtype=torch.bfloat16)
    for part in tensor.split(len(drawn)):
        part.copy_(drawn[: len(part)])
    return tensor.view(size)


@functools.cache
def _numbers() -> torch.Tensor:
    return torch.empty(1 << 24, dtype=torch.bfloat16).normal_(0, 0.02)
