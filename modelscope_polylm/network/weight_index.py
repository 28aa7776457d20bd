"""Finds the weight files of a snapshot: single or sharded by an index, safetensors before torch pickles."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelscope_polylm.network.checkpoint import CheckpointFile

# In the order in which transformers looks for them.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclasses.dataclass(frozen=True)
class WeightIndex:
    """The files that hold a snapshot's weights.

    Attributes:
        files: each file once, in the order of the index.
        assigned: file name to the names of the tensors that the index expects in it; empty without an index.
        problems: why files could not be found, a line each.
    """

    files: list[CheckpointFile]
    assigned: Mapping[str, list[str]]
    problems: list[str]


def read_weight_index(folder: Path) -> WeightIndex:
    """Look for the weights in a folder. Never raises: what is wrong is in `problems`."""
    name = next((name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if name is None:
        return WeightIndex([], {}, [_no_weights(folder)])
    if not name.endswith(".index.json"):
        return WeightIndex([CheckpointFile(folder / name)], {}, [])
    try:
        assigned = _assigned(json.loads((folder / name).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return WeightIndex([], {}, [f"{name} cannot be read ({error}): download the snapshot again"])
    return WeightIndex([CheckpointFile(folder / file) for file in assigned], assigned, [])


def _assigned(index: Any) -> dict[str, list[str]]:
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("it has no weight_map")
    assigned: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"weight_map sends {tensor} to {file!r}, which is not a file name")
        assigned.setdefault(file, []).append(tensor)
    return assigned


def _no_weights(folder: Path) -> str:
    shards = sorted(path.name for suffix in ("bin", "safetensors") for path in folder.glob(f"*-of-*.{suffix}"))
    if shards:
        return f"the index of the shards {', '.join(shards[:4])} is missing: download the snapshot again"
    return f"no weights: {', '.join(WEIGHT_NAMES)} are all missing: download the snapshot again"
