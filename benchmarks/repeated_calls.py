"""`python -m benchmarks.repeated_calls --shape 13b`: calls of other lengths and values capture and compile nothing.

For each call the time to the first token, the time of a further step and the number of captured graphs so far. In the
end the GPU memory that the process takes beyond weights and KV cache: context, kernels, graphs and activations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modelscope_polylm.cli.bench.engines import NO_END, Ours
from modelscope_polylm.cli.bench.workloads import BEAMS, GREEDY, SAMPLING, SHAPES, shape_config
from modelscope_polylm.generation import graphs as captured
from modelscope_polylm.generation.engine import Engine
from modelscope_polylm.generation.options import GenerationOptions

NEW = 24
CALLS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("greedy", 32, {**GREEDY}),
    ("greedy", 700, {**GREEDY}),
    ("greedy", 5, {**GREEDY}),
    ("4 beams", 32, {**BEAMS}),
    ("4 beams", 1500, {**BEAMS, "length_penalty": 1.7}),
    ("4 beams", 9, {**BEAMS, "length_penalty": 0.3}),
    ("sampling", 32, {**SAMPLING}),
    ("sampling", 300, {**SAMPLING, "temperature": 1.1, "top_p": 0.95, "repetition_penalty": 1.3}),
)


class CaptureCount:
    """Counts the graphs that are captured."""

    def __init__(self) -> None:
        self.value = 0
        capture = captured._capture

        def counted(graph: torch.cuda.CUDAGraph, work: Callable[[], Any]) -> Any:
            self.value += 1
            return capture(graph, work)

        captured._capture = counted


def times(engine: Engine, prompt: int, options: dict[str, Any]) -> tuple[float, float]:
    """Seconds to the first update and of each further one."""
    ids = torch.randint(4, engine.decoder.config.vocab_size, (prompt,)).tolist()
    chosen = GenerationOptions.from_layers({"max_new_tokens": NEW, "eos_token_id": NO_END, **options})
    torch.cuda.synchronize()
    start = time.perf_counter()
    stream = engine.stream([ids], chosen)
    next(stream)
    first = time.perf_counter() - start
    for _ in stream:
        pass
    return first, (time.perf_counter() - start - first) / (NEW - 1)


def used_bytes() -> int:
    """Bytes in use on the GPU, those of the driver and of this process's context included."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.check_output(query, text=True).split()[0]) << 20


def memory(engine: Engine, before: int) -> dict[str, int]:
    """Bytes on the GPU: weights, KV cache, and what the process takes beside them."""
    weights, cache = engine.decoder.config.parameters * engine.decoder.dtype.itemsize, engine.memory().cache_bytes
    torch.cuda.empty_cache()
    return {"weights": weights, "cache": cache, "beyond": used_bytes() - before - weights - cache}


def main() -> None:
    """Parse the arguments, make the calls, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    before = used_bytes()
    engine = Ours(shape_config(arguments.shape), torch.device("cuda"), torch.bfloat16).engine
    captures, calls = CaptureCount(), []
    for name, prompt, options in CALLS:
        first, step = times(engine, prompt, options)
        calls.append({"call": name, "prompt": prompt, "first_s": first, "step_s": step, "captures": captures.value})
        figures = f"first {first * 1e3:8.1f} ms, step {step * 1e3:6.2f} ms, {captures.value} graphs"
        print(f"{name:9} {prompt:5} tokens: {figures}", flush=True)
    used = memory(engine, before)
    print(", ".join(f"{name} {count / 1e9:.2f} GB" for name, count in used.items()))
    if arguments.out:
        arguments.out.write_text(json.dumps({"calls": calls, "bytes": used}, indent=1))


if __name__ == "__main__":
    main()
