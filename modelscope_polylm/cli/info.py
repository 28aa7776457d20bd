"""`polylm info`: a model's size, what it needs, and what of that this machine has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modelscope_polylm.backends.placement import PROCESS_BYTES, Memory, memories
from modelscope_polylm.errors import DownloadError
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.releases import RELEASES, Release
from modelscope_polylm.terminal.flags import JsonFlag, ModelFlag, ReleaseFlag, RevisionFlag
from modelscope_polylm.terminal.models import readable_bytes, release_name
from modelscope_polylm.terminal.output import printable, write
from modelscope_polylm.text.prompts import FORMATS, PromptFormat

INDENT = "  "
ITEM_BYTES = {"bfloat16": 2, "float32": 4}
QUANTIZATIONS = ("int8", "fp8", "int4")
CACHE_TOKENS = 1000
PUBLISHED_VOCABULARY, PUBLISHED_POSITIONS = 256_000, 2048
QUESTION = "Hello"
MODEL_NAME = "the name of the model"


def info(
    *,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a model's facts and what fits here.

    Parameters, memory for weights and cache, what fits on this machine, release, prompt format, default options.
    Nothing is downloaded: of a release that is not on this machine the published sizes are shown.
    """
    facts = model_facts(model, revision, memories(), release)
    write(json.dumps(facts, ensure_ascii=False, indent=1) + "\n" if as_json else f"{_page(facts)}\n")


def _page(facts: dict[str, Any]) -> str:
    sections = {
        "Release": _release(facts),
        "Network": _network(facts),
        "Memory": _memory(facts),
        "This machine": [line for each in facts["machine"] for line in _fit_lines(each)],
        f"Prompt format {facts['prompt_format'] or 'unknown'}": _prompt(facts),
        "Default options": [f"{name} {value}" for name, value in facts["defaults"].items()],
    }
    lines = [line for title, body in sections.items() for line in (title, *(INDENT + each for each in body))]
    return printable("\n".join(lines))


def _release(facts: dict[str, Any]) -> list[str]:
    release, folder = facts["release"], facts["folder"]
    location = f"folder {folder}" if folder else f"not on this machine: the first use downloads {_download(facts)}"
    if release is None:
        return ["unknown: neither configuration.json nor the folder's name tells; pass --release", location]
    lines = [f"{name} {release[name]}" for name in ("name", "kind", "model_id", "revision", "hf_id") if release[name]]
    return [*lines, f"recognised by {facts['release_source']}", location]


def _download(facts: dict[str, Any]) -> str:
    return readable_bytes(facts["download_bytes"]) if facts["download_bytes"] else "it"


def _network(facts: dict[str, Any]) -> list[str]:
    sizes = f"{facts['layers']} layers, {facts['heads']} heads, width {facts['width']}"
    context = f"vocabulary {facts['vocabulary']:,}, context {facts['context']:,} tokens"
    stored = facts["stored_quantization"]
    kind = f", those of projections in {stored} (GPTQ)" if stored else ""
    return [f"{facts['parameters']:,} parameters{kind}", sizes, context]


def _memory(facts: dict[str, Any]) -> list[str]:
    weights = [f"weights in {dtype}: {readable_bytes(size)}" for dtype, size in facts["weight_bytes"].items()]
    cache = facts["cache_bytes_per_1000_tokens"].items()
    needed = facts["needed_bytes"].items()
    return [
        *weights,
        *(f"cache per 1,000 tokens in {dtype}: {readable_bytes(size)}" for dtype, size in cache),
        *(f"needed in all in {dtype}, with one full context: {readable_bytes(size)}" for dtype, size in needed),
    ]


def _fit_lines(memory: dict[str, Any]) -> list[str]:
    free = f"{memory['name']}: {readable_bytes(memory['free'])} of {readable_bytes(memory['total'])} free"
    quantized = [f"{INDENT}{_fit_text(kind, fit)}" for kind, fit in memory["quantizations"].items()]
    return [f"{free}; {_fit_text(memory['dtype'], memory)}", *quantized]


def _fit_text(kind: str, fit: dict[str, Any]) -> str:
    if not fit["fits"]:
        return f"the weights in {kind} do not fit"
    return f"fits in {kind} with a cache of {fit['cache_tokens']:,} tokens"


def _prompt(facts: dict[str, Any]) -> list[str]:
    if facts["prompt"] is None:
        return ["plain texts only: how messages are written is not known"]
    turns = "knows conversations" if facts["conversations"] else "single questions only"
    return [*facts["prompt"].rstrip("\n").split("\n"), f"({turns})"]


def model_facts(model: str, revision: str | None, machine: list[Memory], release: str | None = None) -> dict[str, Any]:
    """Everything that is shown; of a release that is not on this machine what is known without its files.

    Raises:
        SnapshotError: no such model, or a broken one.
        DownloadError: a model that is not on this machine, and no known release.
    """
    from modelscope_polylm.hub.resolve import resolve
    from modelscope_polylm.snapshot import open_snapshot

    name = release_name(model)
    try:
        folder = resolve(model, revision, local_files_only=True)
    except DownloadError:
        if name is None:
            raise
        named = RELEASES[name]
        names = {"folder": None, "release_source": MODEL_NAME, "defaults": dict(named.generation)}
        return _facts(_published_config(named), named, FORMATS[named.prompt_format], names, machine)
    snapshot = open_snapshot(folder, release=release or name)
    names = {
        "folder": str(Path(snapshot.folder).resolve()),
        "release_source": MODEL_NAME if name and not release else snapshot.release_source,
        "defaults": snapshot.generation,
    }
    return _facts(snapshot.config, snapshot.release, snapshot.prompt_format, names, machine)


def _facts(
    config: PolyLMConfig,
    release: Release | None,
    prompt_format: PromptFormat | None,
    names: dict[str, Any],
    machine: list[Memory],
) -> dict[str, Any]:
    return {
        "release": _release_facts(release),
        **names,
        "prompt_format": prompt_format.name if prompt_format else None,
        "prompt": prompt_format.last_turn.format(question=QUESTION) if prompt_format else None,
        "conversations": prompt_format is not None and prompt_format.earlier_turn is not None,
        "parameters": config.parameters,
        "layers": config.layers,
        "heads": config.heads,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "context": config.max_positions,
        "stored_quantization": config.quantization,
        "weight_bytes": {kind: weight_bytes(config, kind) for kind in (*ITEM_BYTES, *_quantizations(config))},
        "cache_bytes_per_1000_tokens": {dtype: cache_bytes(config, dtype) for dtype in (*ITEM_BYTES, "int8")},
        "needed_bytes": {kind: needed_bytes(config, kind) for kind in (*ITEM_BYTES, *_quantizations(config))},
        "download_bytes": release.download_bytes if release else None,
        "machine": [_fit(config, memory) for memory in machine],
    }


def cache_bytes(config: PolyLMConfig, dtype: str, tokens: int = CACHE_TOKENS) -> int:
    """Bytes of keys and values; prompt tokens count once for all beams, answer tokens once for each."""
    import torch

    from modelscope_polylm.network.kv_cache import bytes_per_slot

    return bytes_per_slot(config, getattr(torch, dtype)) * tokens


def weight_bytes(config: PolyLMConfig, kind: str, dtype: str = "bfloat16") -> int:
    """Bytes of the weights in a dtype, or under a quantization with all else in `dtype`."""
    from modelscope_polylm.network import weights

    if kind in ITEM_BYTES:
        return weights.weight_bytes(config, ITEM_BYTES[kind])
    return weights.weight_bytes(config, ITEM_BYTES[dtype], kind)


def needed_bytes(config: PolyLMConfig, kind: str) -> int:
    """Bytes of the weights, the cache of one full context, and the process around them."""
    cache = cache_bytes(config, kind if kind in ITEM_BYTES else "bfloat16", config.max_positions)
    return weight_bytes(config, kind) + cache + PROCESS_BYTES


def _fit(config: PolyLMConfig, memory: Memory) -> dict[str, Any]:
    """Whether the weights fit into free memory, and how many tokens of KV cache next to them; so for quantizations."""
    quantized = {kind: _fit_kind(config, memory, kind) for kind in _quantizations(config)}
    return {**vars(memory), **_fit_kind(config, memory, memory.dtype), "quantizations": quantized}


def _quantizations(config: PolyLMConfig) -> tuple[str, ...]:
    """What the model can be quantised to while it loads: nothing if its files are quantised."""
    return QUANTIZATIONS if config.quantization is None else ()


def _fit_kind(config: PolyLMConfig, memory: Memory, kind: str) -> dict[str, Any]:
    left = memory.free - weight_bytes(config, kind, memory.dtype)
    return {"fits": left > 0, "cache_tokens": max(left, 0) // cache_bytes(config, memory.dtype, tokens=1)}


def _release_facts(release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    names = ("name", "model_id", "revision", "hf_id", "kind")
    return {name: getattr(release, name) for name in names}


def _published_config(release: Release) -> PolyLMConfig:
    sizes = {"n_embd": release.hidden_size, "n_layer": release.layers, "n_head": release.heads}
    rest = {"model_type": "gpt2", "vocab_size": PUBLISHED_VOCABULARY, "n_positions": PUBLISHED_POSITIONS}
    return PolyLMConfig.from_dict({**sizes, **rest})
