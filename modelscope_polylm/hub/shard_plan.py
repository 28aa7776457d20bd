"""Which tensor goes into which safetensors file, and what the files' headers say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelscope_polylm.errors import OptionError

PREFIX = "transformer."
INDEX = "model.safetensors.index.json"
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAFETENSORS_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Shard:
    """One safetensors file.

    Attributes:
        name: file name.
        shapes: tensor names, without the prefix of transformers, to the shapes as the file holds them.
        dtype: torch's name of their type.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    dtype: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        return {name: math.prod(shape) * ITEM_SIZES[self.dtype] for name, shape in self.shapes.items()}

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(self.sizes.values())

    @property
    def header(self) -> bytes:
        """The file's first bytes, up to the first tensor: https://huggingface.co/docs/safetensors#format."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name, size in self.sizes.items():
            offsets = [start, start + size]
            type = SAFETENSORS_TYPES[self.dtype]
            entries[PREFIX + name] = {"dtype": type, "shape": list(self.shapes[name]), "data_offsets": offsets}
            start += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def plan_shards(shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: str, largest: int) -> list[Shard]:
    """Fill one file after the other, each with at most `largest` bytes unless a single tensor is larger."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = largest
    for name, shape in shapes:
        size = math.prod(shape) * ITEM_SIZES[dtype]
        if size > room and groups[-1]:
            groups.append({})
            room = largest
        groups[-1][name] = shape
        room -= size
    return [Shard(_shard_name(number, len(groups)), group, dtype) for number, group in enumerate(groups, 1)]


def index_json(shards: Sequence[Shard]) -> str:
    """The contents of model.safetensors.index.json."""
    weight_map = {PREFIX + name: shard.name for shard in shards for name in shard.shapes}
    index = {
        "metadata": {"total_size": sum(shard.size for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return json.dumps(index, indent=2) + "\n"


def parse_size(text: str | int) -> int:
    """Bytes of a size such as '5GB' or '500MiB'. Raises OptionError for anything else, and for less than 1 MB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match and match[2].upper() in UNITS else 0
    if size < 10**6:
        raise OptionError(f"max_shard_size={text!r} is not a size of at least 1MB: write it as in '5GB' or '500MiB'.")
    return size


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
