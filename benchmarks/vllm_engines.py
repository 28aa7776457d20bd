"""The two that `benchmarks.vllm_backend` compares, as ways to call them: vLLM directly, and backend='vllm'."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.placement import choose_dtype
from modelscope_polylm.backends.vllm.engine import import_vllm
from modelscope_polylm.backends.vllm.options import check_device, fixed_arguments
from modelscope_polylm.cli.bench.engines import NO_END, Vocabulary
from modelscope_polylm.cli.bench.workloads import shape_config
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.network.weights import WeightFiles
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

Prompts = list[list[int]]
Contender = Callable[[Prompts, int], list[list[int]]]
"""Takes prompts and the number of new tokens, and returns these."""


class Engine(NamedTuple):
    """A started engine: ways to call it, vLLM's own config, and how it is stopped."""

    contenders: dict[str, Contender]
    config: Any
    stop: Callable[[], None]


def benchmark_snapshot(shape: str, folder: Path) -> tuple[Snapshot, dict[str, Any]]:
    """The tiny model, or a published shape without weights; and the engine options that it needs."""
    if shape == "tiny":
        from modelscope_polylm.hub.resolve import TINY_FOLDER
        from modelscope_polylm.packaging.cache import packaged_snapshot

        return open_snapshot(packaged_snapshot(TINY_FOLDER)), {}
    config = shape_config(shape)
    contents = {**config.to_dict(), "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(contents), encoding="utf-8")
    tokenizer = cast(PolyLMTokenizer, Vocabulary(config.vocab_size))
    snapshot = Snapshot(folder, config, tokenizer, WeightFiles(folder), None, FORMATS["base"], {})
    return snapshot, {"load_format": "dummy"}


def start_vllm(snapshot: Snapshot, target: torch.device, options: Mapping[str, Any]) -> Engine:
    """`vllm.LLM`, called directly."""
    check_device(target, {"pipeline_parallel_size": 1, "distributed_executor_backend": None, **options})
    vllm = import_vllm()
    llm = vllm.LLM(**fixed_arguments(snapshot, choose_dtype(None, target)), **options)

    def generate(prompts: Prompts, new: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return Engine({"vllm": generate}, llm.llm_engine.vllm_config, llm.llm_engine.engine_core.shutdown)


def start_polylm(snapshot: Snapshot, target: torch.device, options: Mapping[str, Any]) -> Engine:
    """The backend: its `generate`, and its `stream` drained."""
    backend: Any = create_backend("vllm", snapshot, target, choose_dtype(None, target), **options)

    def generate(prompts: Prompts, new: int) -> list[list[int]]:
        return [group[0].ids for group in backend.generate(prompts, greedy(new))]

    def stream(prompts: Prompts, new: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        for update in backend.stream(prompts, greedy(new)):
            for row, ids in zip(found, update, strict=True):
                row += ids
        return found

    contenders: dict[str, Contender] = {"polylm vllm": generate, "polylm vllm, stream": stream}
    return Engine(contenders, backend.engine.config, backend.close)


ENGINES: dict[str, Callable[[Snapshot, torch.device, Mapping[str, Any]], Engine]] = {
    "vllm": start_vllm,
    "polylm": start_polylm,
}


def greedy(new: int) -> GenerationOptions:
    """Options of the backend for exactly `new` tokens."""
    return GenerationOptions.from_layers({"max_new_tokens": new, "eos_token_id": NO_END})
