"""What is to be known of a model without loading it: sizes, memory, release, prompt, defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelscope_polylm.app.machine import Memory
from modelscope_polylm.app.model_loading import published
from modelscope_polylm.errors import DownloadError
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.releases import Release
from modelscope_polylm.text.prompts import FORMATS

ITEM_BYTES = {"bfloat16": 2, "float32": 4}
CACHE_TOKENS = 1000
PUBLISHED_VOCABULARY, PUBLISHED_POSITIONS = 256_000, 2048
QUESTION = "Hello"


def model_facts(model: str, revision: str | None, machine: list[Memory]) -> dict[str, Any]:
    """All facts; of a release that is not on this machine those that are known without its files.

    Raises:
        SnapshotError: no such model, or a broken one.
        DownloadError: a model that is not on this machine, and no known release.
    """
    from modelscope_polylm.hub.resolve import resolve
    from modelscope_polylm.snapshot import open_snapshot

    release = published(model)
    try:
        snapshot = open_snapshot(
            resolve(model, revision, local_files_only=True), release=release.name if release else None
        )
    except DownloadError:
        if release is None:
            raise
        names = {"folder": None, "prompt_format": release.prompt_format, "defaults": dict(release.generation)}
        return _facts(_published_config(release), release, names, machine)
    names = {
        "folder": str(Path(snapshot.folder).resolve()),
        "prompt_format": snapshot.prompt_format.name,
        "defaults": snapshot.generation,
    }
    return _facts(snapshot.config, snapshot.release, names, machine)


def _facts(
    config: PolyLMConfig, release: Release | None, names: dict[str, Any], machine: list[Memory]
) -> dict[str, Any]:
    prompt_format = FORMATS[names["prompt_format"]]
    return {
        "release": _release_facts(release),
        **names,
        "prompt": prompt_format.last_turn.format(question=QUESTION),
        "conversations": prompt_format.earlier_turn is not None,
        "parameters": config.parameters,
        "layers": config.layers,
        "heads": config.heads,
        "width": config.width,
        "vocabulary": config.vocab_size,
        "context": config.positions,
        "weight_bytes": {dtype: config.parameters * size for dtype, size in ITEM_BYTES.items()},
        "cache_bytes_per_1000_tokens": {dtype: cache_bytes(config, dtype) for dtype in ITEM_BYTES},
        "machine": [_fit(config, memory) for memory in machine],
    }


def cache_bytes(config: PolyLMConfig, dtype: str, tokens: int = CACHE_TOKENS) -> int:
    """Bytes of keys and values; prompt tokens count once for all beams, answer tokens once for each."""
    return 2 * config.layers * config.width * ITEM_BYTES[dtype] * tokens


def _fit(config: PolyLMConfig, memory: Memory) -> dict[str, Any]:
    """Whether the weights fit into free memory, and how many tokens of cache beside them."""
    left = memory.free - config.parameters * ITEM_BYTES[memory.dtype]
    tokens = max(left, 0) // cache_bytes(config, memory.dtype, tokens=1)
    return {**vars(memory), "fits": left > 0, "cache_tokens": tokens}


def _release_facts(release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    names = ("name", "model_id", "revision", "hf_id", "kind")
    return {name: getattr(release, name) for name in names}


def _published_config(release: Release) -> PolyLMConfig:
    sizes = {"n_embd": release.width, "n_layer": release.layers, "n_head": release.heads}
    rest = {"model_type": "gpt2", "vocab_size": PUBLISHED_VOCABULARY, "n_positions": PUBLISHED_POSITIONS}
    return PolyLMConfig.from_dict({**sizes, **rest})
