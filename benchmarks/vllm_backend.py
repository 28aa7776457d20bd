"""`python -m benchmarks.vllm_backend`: backend='vllm' next to vLLM called directly, one after the other.

Each engine of --order is alone on the device, in a process of its own, with the same options and the same random
prompts, fresh in every round: `vllm.LLM.generate`; the backend's `generate`, and its deltas as they come. What counts
is the ratio of the tokens per second (of the medians): each is divided by that of the fastest direct run, and the
direct runs before and after tell how far the device drifts. The shapes have random weights (load_format='dummy', so
nothing is read from disk). On a CPU use --shape tiny. --out is written anew after each figure.

`--tensor-parallel 2` shares each layer between two GPUs: compare its ms/step with those of a run without.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.fresh_process import in_fresh_process
from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.placement import choose_device, choose_dtype
from modelscope_polylm.backends.vllm.engine import SPAWN, import_vllm, installed_version
from modelscope_polylm.backends.vllm.options import check_device, fixed_arguments
from modelscope_polylm.cli.bench.engines import fixed_length, write_config
from modelscope_polylm.cli.bench.workloads import SHAPES, random_snapshot
from modelscope_polylm.snapshot import Snapshot, open_snapshot

GOAL = 0.97
MEMORY = {"cuda": 0.9, "cpu": 0.1}
WARM_UP_ROUNDS = 2

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[list[int]]]
"""Takes prompts and the number of new tokens, and returns these."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The same for every engine: the model, vLLM's arguments, and `rows` prompts at once of `prompt` tokens."""

    shape: str
    device: str | None
    options: Mapping[str, Any]
    rows: tuple[int, ...]
    prompt: int
    new: int
    repeats: int


class StartedEngine(NamedTuple):
    """The ways to call an engine by their names, vLLM's own config, and how it is stopped."""

    calls: dict[str, Generate]
    config: Any
    stop: Callable[[], None]


def main() -> None:
    """Run the engines, write what there is after every figure, and print the table."""
    arguments = parsed()
    options = engine_options(arguments)
    work = {name: getattr(arguments, name) for name in ("prompt", "new", "repeats")}
    setting = Setting(arguments.shape, arguments.device, options, rows=tuple(arguments.rows), **work)
    known = {"shape": arguments.shape, "gpus": arguments.tensor_parallel, "options": options, "goal": GOAL}
    facts: dict[str, Any] = {}
    try:
        for found in measured(arguments.order, setting):
            facts = {**known, **found, "results": with_shares(found["results"])}
            if arguments.out:
                arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except RuntimeError as error:
        sys.exit(str(error))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"\n{arguments.shape} on {arguments.tensor_parallel} x {facts['device']}, {versions}")
    print(f"last column: share of the fastest direct run; the goal is {GOAL}")
    for result in sorted(facts["results"], key=lambda result: result["rows"]):
        print(speed_line(result))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="13b")
    parser.add_argument("--order", nargs="+", choices=list(ENGINES), default=["vllm", "polylm", "vllm"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share each layer")
    parser.add_argument("--memory", type=float, help="share of each GPU's memory; 0.9, on a CPU 0.1")
    parser.add_argument("--eager", action="store_true", help="neither compile nor capture: a quick start")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    if arguments.out and not arguments.out.parent.is_dir():
        parser.error(f"the folder {arguments.out.parent} of --out does not exist: create it")
    return arguments


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """vLLM's arguments for every engine."""
    kind = choose_device(arguments.device).type
    return {
        "gpu_memory_utilization": arguments.memory or MEMORY[kind],
        "enforce_eager": arguments.eager,
        "tensor_parallel_size": arguments.tensor_parallel,
    }


def measured(order: Sequence[str], setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield all figures so far, each time that there are more of them; print what is new."""
    facts: dict[str, Any] = {"engines": [], "results": []}
    for index, name in enumerate(order):
        earlier = order[:index].count(name)
        again = f", run {earlier + 1}" if earlier else ""
        messages = in_fresh_process(measured_engine, name, setting)
        started = next(messages)
        facts |= {"device": started.pop("device"), "versions": started.pop("versions")}
        facts["engines"].append({"engine": name + again, **started})
        print(start_line(facts["engines"][-1], max(setting.rows) * (setting.prompt + setting.new)), flush=True)
        yield facts
        for result in messages:
            facts["results"].append({**result, "engine": result["engine"] + again})
            print(speed_line(facts["results"][-1]), flush=True)
            yield facts


def with_shares(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, each with its share of the fastest direct run of its work; None where there was none."""
    fastest: dict[str, float] = {}
    for result in results:
        if result["engine"].startswith("vllm"):
            fastest[result["work"]] = max(result["value"], fastest.get(result["work"], 0.0))
    shares = (result["value"] / fastest[result["work"]] if result["work"] in fastest else None for result in results)
    return [{**result, "share": share} for result, share in zip(results, shares, strict=True)]


def start_line(engine: Mapping[str, Any], needed: int) -> str:
    """What a started engine is, how long its start took, and whether the most rows have room for `needed` tokens."""
    note = "" if engine["cache_tokens"] >= needed else f", too few for all rows at once, which need {needed:,}"
    return (
        f"{engine['engine']}: vLLM imported in {engine['import_seconds']:.1f} s, engine ready "
        f"{engine['start_seconds']:.1f} s later; at most {engine['max_num_seqs']:,} rows and "
        f"{engine['max_num_batched_tokens']:,} tokens a step, {engine['cache_tokens']:,} tokens of KV cache{note}"
    )


def speed_line(result: Mapping[str, Any]) -> str:
    """A line of the table; with the share where it is known."""
    share = "" if result.get("share") is None else f"{result['share']:9.3f}"
    speeds = f"{result['value']:10,.1f} tokens/s {result['ms_per_step']:9.3f} ms/step"
    return f"{result['work']:30} {result['engine']:22} {speeds}{share}"


def measured_engine(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """Start an engine of ENGINES. Yields what it is, then its times for each number of rows."""
    # on a CPU, too: a forked engine would keep the pipe of its parent open
    for variable, value in SPAWN.items():
        os.environ.setdefault(variable, value)
    target = choose_device(setting.device)
    start = time.perf_counter()
    import_vllm()
    imported = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        snapshot, needed = benchmark_snapshot(setting.shape, Path(folder))
        begun = time.perf_counter()
        engine = ENGINES[name](snapshot, target, {**setting.options, **needed})
        times = {"import_seconds": imported - start, "start_seconds": time.perf_counter() - begun}
        try:
            yield {**times, **machine(), **limits(engine.config)}
            for rows in setting.rows:
                yield from timed_rounds(engine.calls, snapshot.config.vocab_size, rows, setting)
        finally:
            engine.stop()


def benchmark_snapshot(shape: str, folder: Path) -> tuple[Snapshot, dict[str, Any]]:
    """The bundled model, or a published shape without weights; and the engine options that it needs."""
    if shape == "tiny":
        from modelscope_polylm.hub.resolve import TINY_FOLDER
        from modelscope_polylm.packaging.cache import packaged_snapshot

        return open_snapshot(packaged_snapshot(TINY_FOLDER)), {}
    snapshot = random_snapshot(shape, folder)
    write_config(snapshot.config, folder)
    return snapshot, {"load_format": "dummy"}


def start_vllm(snapshot: Snapshot, target: torch.device, options: Mapping[str, Any]) -> StartedEngine:
    """`vllm.LLM`, called directly."""
    check_device(target, {"pipeline_parallel_size": 1, "distributed_executor_backend": None, **options})
    vllm = import_vllm()
    llm = vllm.LLM(**fixed_arguments(snapshot, choose_dtype(None, target)), **options)

    def generate(prompts: Prompts, new: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return StartedEngine({"vllm": generate}, llm.llm_engine.vllm_config, llm.llm_engine.engine_core.shutdown)


def start_polylm(snapshot: Snapshot, target: torch.device, options: Mapping[str, Any]) -> StartedEngine:
    """The backend: its `generate`, and its deltas as they come."""
    backend: Any = create_backend("vllm", snapshot, target, choose_dtype(None, target), **options)

    def generate(prompts: Prompts, new: int) -> list[list[int]]:
        return [group[0].ids for group in backend.generate(prompts, fixed_length(new))]

    def stream(prompts: Prompts, new: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        for delta in backend.submit(backend.requests(prompts, fixed_length(new))):
            found[delta.request] += delta.ids
        return found

    return StartedEngine({"polylm vllm": generate, "polylm vllm, stream": stream}, backend.engine.config, backend.close)


ENGINES: dict[str, Callable[[Snapshot, torch.device, Mapping[str, Any]], StartedEngine]] = {
    "vllm": start_vllm,
    "polylm": start_polylm,
}


def timed_rounds(
    calls: Mapping[str, Generate], vocab_size: int, rows: int, setting: Setting
) -> Iterator[dict[str, Any]]:
    """Time each way of calling `repeats` times after the warm-up, in turn, another one first in each round."""
    names, times = list(calls), {name: list[float]() for name in calls}
    for round_number in range(-WARM_UP_ROUNDS, setting.repeats):
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            prompts = fresh_prompts(name.endswith("stream"), rows, round_number, setting.prompt, vocab_size)
            taken = seconds(calls[name], prompts, setting.new)
            times[name] += [taken] if round_number >= 0 else []
    work = f"greedy, {rows} row{'s' * (rows > 1)}, {setting.prompt} + {setting.new}"
    for name, taken_each in times.items():
        median = statistics.median(taken_each)
        speeds = {"value": rows * setting.new / median, "ms_per_step": median / setting.new * 1e3}
        yield {"work": work, "engine": name, "unit": "tokens/s", "rows": rows, **speeds, "seconds": taken_each}


def fresh_prompts(stream: bool, rows: int, round_number: int, length: int, vocab_size: int) -> Prompts:
    """The prompts of a round, the same in every process. A stream has its own: its engine has seen the others."""
    source = random.Random(f"{stream} {rows} {round_number}")
    return [[source.randrange(4, vocab_size) for _ in range(length)] for _ in range(rows)]


def seconds(call: Generate, prompts: Prompts, new: int) -> float:
    """Time one call. Raises RuntimeError where it did not do all of the work."""
    start = time.perf_counter()
    found = call(prompts, new)
    taken = time.perf_counter() - start
    if [len(ids) for ids in found] != [new] * len(prompts):
        raise RuntimeError("An answer ended early, so the speeds cannot be compared: take another NO_END.")
    return taken


def machine() -> dict[str, Any]:
    """The device's name, asked for through vLLM, as torch would take memory of the GPU for it; and versions."""
    from vllm.platforms import current_platform

    name = "CPU" if current_platform.is_cpu() else current_platform.get_device_name()
    return {"device": name, "versions": {"vllm": installed_version(), "torch": importlib.metadata.version("torch")}}


def limits(config: Any) -> dict[str, int]:
    """What bounds the rows that run at once: of the scheduler, and the tokens that the KV cache holds."""
    scheduler, cache = config.scheduler_config, config.cache_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "cache_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
    }


if __name__ == "__main__":
    main()
