"""`polylm info`: a model's size, what it needs, and what of that this machine has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import DownloadError
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.releases import Release, named_release
from modelscope_polylm.terminal.flags import JsonFlag, ModelFlag, RevisionFlag
from modelscope_polylm.terminal.models import readable_bytes
from modelscope_polylm.terminal.output import printable, write
from modelscope_polylm.text.prompts import FORMATS

INDENT = "  "


def info(*, model: ModelFlag = "tiny", revision: RevisionFlag = None, as_json: JsonFlag = False) -> None:
    """Show a model's facts and what fits here.

    Parameters, memory for weights and cache, what fits on this machine, release, prompt format, default options.
    Nothing is downloaded: of a release that is not on this machine the published sizes are shown.
    """

    facts = model_facts(model, revision, memories())
    write(json.dumps(facts, ensure_ascii=False, indent=1) + "\n" if as_json else f"{_page(facts)}\n")


def _page(facts: dict[str, Any]) -> str:
    sections = {
        "Release": _release(facts),
        "Network": _network(facts),
        "Memory": _memory(facts),
        "This machine": [_fit_text(each) for each in facts["machine"]],
        f"Prompt format {facts['prompt_format']!r}": _prompt(facts),
        "Default options": [f"{name} {value}" for name, value in facts["defaults"].items()],
    }
    lines = [line for title, body in sections.items() for line in (title, *(INDENT + each for each in body))]
    return printable("\n".join(lines))


def _release(facts: dict[str, Any]) -> list[str]:
    release, folder = facts["release"], facts["folder"]
    place = f"folder {folder}" if folder else "not on this machine: the first use downloads it"
    if release is None:
        return ["none of the published ones", place]
    lines = [f"{name} {release[name]}" for name in ("name", "kind", "model_id", "revision", "hf_id") if release[name]]
    return [*lines, place]


def _network(facts: dict[str, Any]) -> list[str]:
    sizes = f"{facts['layers']} layers, {facts['heads']} heads, width {facts['width']}"
    context = f"vocabulary {facts['vocabulary']:,}, context {facts['context']:,} tokens"
    return [f"{facts['parameters']:,} parameters", sizes, context]


def _memory(facts: dict[str, Any]) -> list[str]:
    weights = [f"weights in {dtype}: {readable_bytes(size)}" for dtype, size in facts["weight_bytes"].items()]
    cache = facts["cache_bytes_per_1000_tokens"].items()
    return [*weights, *(f"cache per 1,000 tokens in {dtype}: {readable_bytes(size)}" for dtype, size in cache)]


def _fit_text(memory: dict[str, Any]) -> str:
    there = f"{memory['name']}: {readable_bytes(memory['free'])} of {readable_bytes(memory['total'])} free"
    if not memory["fits"]:
        return f"{there}; the weights in {memory['dtype']} do not fit"
    return f"{there}; fits in {memory['dtype']} with a cache of {memory['cache_tokens']:,} tokens"


def _prompt(facts: dict[str, Any]) -> list[str]:
    turns = "knows conversations" if facts["conversations"] else "single questions only"
    return [*facts["prompt"].rstrip("\n").split("\n"), f"({turns})"]


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

    release = named_release(model)
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
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "context": config.max_positions,
        "weight_bytes": {dtype: config.parameters * size for dtype, size in ITEM_BYTES.items()},
        "cache_bytes_per_1000_tokens": {dtype: cache_bytes(config, dtype) for dtype in ITEM_BYTES},
        "machine": [_fit(config, memory) for memory in machine],
    }


def cache_bytes(config: PolyLMConfig, dtype: str, tokens: int = CACHE_TOKENS) -> int:
    """Bytes of keys and values; prompt tokens count once for all beams, answer tokens once for each."""
    return 2 * config.layers * config.hidden_size * ITEM_BYTES[dtype] * tokens


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
    sizes = {"n_embd": release.hidden_size, "n_layer": release.layers, "n_head": release.heads}
    rest = {"model_type": "gpt2", "vocab_size": PUBLISHED_VOCABULARY, "n_positions": PUBLISHED_POSITIONS}
    return PolyLMConfig.from_dict({**sizes, **rest})


CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Memory:
    """Memory that a model can be put into.

    Attributes:
        name: 'RAM', or a GPU as 'cuda:0 NVIDIA H100'.
        total, free: bytes.
        dtype: the default precision of weights and cache there.
    """

    name: str
    total: int
    free: int
    dtype: str


def memories() -> list[Memory]:
    """RAM, within a container's limit, and every GPU."""
    return [_ram(), *_gpus()]


def _ram() -> Memory:
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    limit = min([memory.total, *_container_limits()])
    return Memory("RAM", limit, min(memory.available, limit), "float32")


def _container_limits() -> Iterator[int]:
    for name in CGROUP_FILES:
        try:
            yield int(Path(name).read_text())
        except (OSError, ValueError):  # not Linux, or 'max'
            continue


def _gpus() -> Iterator[Memory]:
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield Memory(f"cuda:{index} {torch.cuda.get_device_name(index)}", total, free, "bfloat16")
