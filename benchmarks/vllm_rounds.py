"""Times one engine of `benchmarks.vllm_backend`, in a process of its own, on rounds of fresh prompts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.vllm_engines import ENGINES, Contender, Prompts, benchmark_snapshot
from modelscope_polylm.backends.placement import choose_device
from modelscope_polylm.backends.vllm.engine import SPAWN, import_vllm, installed_version

WARM_UP_ROUNDS = 2


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
                yield from timed_rounds(engine.contenders, snapshot.config.vocab_size, rows, setting)
        finally:
            engine.stop()


def timed_rounds(
    contenders: Mapping[str, Contender], vocabulary: int, rows: int, setting: Setting
) -> Iterator[dict[str, Any]]:
    """Time each way of calling `repeats` times behind the warm-up, in turn, another one first in each round."""
    names, times = list(contenders), {name: list[float]() for name in contenders}
    for round_number in range(-WARM_UP_ROUNDS, setting.repeats):
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            prompts = fresh_prompts(name.endswith("stream"), rows, round_number, setting.prompt, vocabulary)
            taken = seconds(contenders[name], prompts, setting.new)
            times[name] += [taken] if round_number >= 0 else []
    work = f"greedy, {rows} row{'s' * (rows > 1)}, {setting.prompt} + {setting.new}"
    for name, taken_each in times.items():
        median = statistics.median(taken_each)
        speeds = {"value": rows * setting.new / median, "ms_per_step": median / setting.new * 1e3}
        yield {"work": work, "engine": name, "unit": "tokens/s", "rows": rows, **speeds, "seconds": taken_each}


def fresh_prompts(stream: bool, rows: int, round_number: int, length: int, vocabulary: int) -> Prompts:
    """The prompts of a round, the same in every process. A stream has its own: its engine has seen the others."""
    source = random.Random(f"{stream} {rows} {round_number}")
    return [[source.randrange(4, vocabulary) for _ in range(length)] for _ in range(rows)]


def seconds(contender: Contender, prompts: Prompts, new: int) -> float:
    """Time one call. Raises RuntimeError where it did not do all of the work."""
    start = time.perf_counter()
    found = contender(prompts, new)
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
