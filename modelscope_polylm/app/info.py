"""`polylm info`: a model's size, what it needs, and what of that this machine has."""

from __future__ import annotations

import json
from typing import Any

from modelscope_polylm.app.model_flags import JsonFlag, ModelFlag, RevisionFlag
from modelscope_polylm.app.model_loading import readable_bytes
from modelscope_polylm.app.terminal import printable, write

INDENT = "  "


def info(*, model: ModelFlag = "tiny", revision: RevisionFlag = None, as_json: JsonFlag = False) -> None:
    """Show a model's facts and what fits here.

    Parameters, memory for weights and cache, what fits on this machine, release, prompt format, default options.
    Nothing is downloaded: of a release that is not on this machine the published sizes are shown.
    """
    from modelscope_polylm.app.machine import memories
    from modelscope_polylm.app.model_facts import model_facts

    facts = model_facts(model, revision, memories())
    write(json.dumps(facts, ensure_ascii=False, indent=1) + "\n" if as_json else f"{_page(facts)}\n")


def _page(facts: dict[str, Any]) -> str:
    sections = {
        "Release": _release(facts),
        "Network": _network(facts),
        "Memory": _memory(facts),
        "This machine": [_fit(each) for each in facts["machine"]],
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


def _fit(memory: dict[str, Any]) -> str:
    there = f"{memory['name']}: {readable_bytes(memory['free'])} of {readable_bytes(memory['total'])} free"
    if not memory["fits"]:
        return f"{there}; the weights in {memory['dtype']} do not fit"
    return f"{there}; fits in {memory['dtype']} with a cache of {memory['cache_tokens']:,} tokens"


def _prompt(facts: dict[str, Any]) -> list[str]:
    turns = "knows conversations" if facts["conversations"] else "single questions only"
    return [*facts["prompt"].rstrip("\n").split("\n"), f"({turns})"]
