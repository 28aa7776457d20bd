"""`python -m benchmarks.vllm_backend`: backend='vllm' beside vLLM called directly, in one run.

Both engines are started with the same options and stay alive; each round times one after the other on fresh random
prompts: `vllm.LLM.generate`, the backend's `generate`, and its `stream` drained. What counts is the quotient of the
tokens per second; that of the medians is printed. On a GPU the shapes have random weights (load_format='dummy', so
nothing is read from disk), and both engines fit beside each other: each takes --memory of the GPU. On a CPU use
--shape tiny.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from modelscope_polylm.app.bench.engines import NO_END, Vocabulary
from modelscope_polylm.app.bench.shapes import SHAPES, shape_config
from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.placement import choose_device, choose_dtype
from modelscope_polylm.backends.vllm_arguments import fixed_arguments
from modelscope_polylm.backends.vllm_install import import_vllm, installed_version
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.hub.packaged_cache import packaged_snapshot
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.network.weights import WeightFiles
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

GOAL = 0.97
Contender = Callable[[list[list[int]], int], list[list[int]]]


def benchmark_snapshot(shape: str, folder: Path) -> tuple[Snapshot, dict[str, Any]]:
    """The tiny model, or a published shape without weights; and the engine options that it needs."""
    if shape == "tiny":
        return open_snapshot(packaged_snapshot(TINY_FOLDER)), {}
    config = shape_config(shape)
    contents = {**config.to_dict(), "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(contents), encoding="utf-8")
    tokenizer = cast(PolyLMTokenizer, Vocabulary(config.vocab_size))
    snapshot = Snapshot(folder, config, tokenizer, WeightFiles(folder), None, FORMATS["base"], {})
    return snapshot, {"load_format": "dummy"}


def contenders(snapshot: Snapshot, device: str | None, options: dict[str, Any]) -> dict[str, Contender]:
    """Start both engines."""
    target = choose_device(device)
    dtype = choose_dtype(None, target)
    vllm = import_vllm()
    arguments = {**fixed_arguments(snapshot, dtype), **options}
    direct = vllm.LLM(**arguments)
    backend: Any = create_backend("vllm", snapshot, target, dtype, **options)

    def call_directly(prompts: list[list[int]], new: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        outputs = direct.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def call_backend(prompts: list[list[int]], new: int) -> list[list[int]]:
        return [group[0].ids for group in backend.generate(prompts, greedy(new))]

    def stream_backend(prompts: list[list[int]], new: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        for update in backend.stream(prompts, greedy(new)):
            for row, ids in zip(found, update, strict=True):
                row += ids
        return found

    return {"vllm": call_directly, "polylm vllm": call_backend, "polylm vllm, stream": stream_backend}


def greedy(new: int) -> GenerationOptions:
    return GenerationOptions.from_layers({"max_new_tokens": new, "eos_token_id": NO_END})


def seconds(contender: Contender, prompts: list[list[int]], new: int) -> float:
    """Time one call. Raises RuntimeError where it did not do all of the work."""
    start = time.perf_counter()
    found = contender(prompts, new)
    taken = time.perf_counter() - start
    if [len(ids) for ids in found] != [new] * len(prompts):
        raise RuntimeError("An answer ended early, so the speeds cannot be compared: take another NO_END.")
    return taken


def measure(
    engines: dict[str, Contender], vocabulary: int, rows: int, prompt: int, new: int, repeats: int
) -> list[dict[str, Any]]:
    """Time each engine `repeats` times behind two warm-up rounds, in turn, the first one another in each round."""
    names, times, source = list(engines), {name: [] for name in engines}, random.Random(rows)
    for round_number in range(-2, repeats):
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            # fresh prompts: none is in a prefix cache
            prompts = [[source.randrange(4, vocabulary) for _ in range(prompt)] for _ in range(rows)]
            taken = seconds(engines[name], prompts, new)
            times[name] += [taken] if round_number >= 0 else []
    work = f"greedy, {rows} row{'s' * (rows > 1)}, {prompt} + {new}"
    return [
        {"work": work, "engine": name, "unit": "tokens/s", "rows": rows, "seconds": times[name],
         "value": rows * new / statistics.median(times[name])}
        for name in names
    ]  # fmt: skip


def report(results: Sequence[dict[str, Any]]) -> None:
    """Print the speeds, and each as a share of vLLM's own."""
    direct = {result["work"]: result["value"] for result in results if result["engine"] == "vllm"}
    for result in results:
        share = result["value"] / direct[result["work"]]
        print(f"{result['work']:30} {result['engine']:22} {result['value']:10,.1f} tokens/s  {share:.3f}", flush=True)


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="13b")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--memory", type=float, help="share of the memory for each engine; 0.42, on a CPU 0.1")
    parser.add_argument("--eager", action="store_true", help="neither compile nor capture: a quick start")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    memory = arguments.memory or (0.42 if choose_device(arguments.device).type == "cuda" else 0.1)
    with tempfile.TemporaryDirectory() as folder:
        snapshot, needed = benchmark_snapshot(arguments.shape, Path(folder))
        options = {"gpu_memory_utilization": memory, "enforce_eager": arguments.eager, **needed}
        engines = contenders(snapshot, arguments.device, options)
        results: list[dict[str, Any]] = []
        for rows in arguments.rows:
            found = measure(
                engines, snapshot.config.vocab_size, rows, arguments.prompt, arguments.new, arguments.repeats
            )
            results += found
            report(found)
    versions = {"vllm": installed_version(), "torch": importlib.metadata.version("torch")}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {"device": name, "shape": arguments.shape, "versions": versions, "goal": GOAL, "results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
