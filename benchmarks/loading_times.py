"""Times loading in the process that `benchmarks.loading` starts for it, beside what this machine can do."""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.loading_rates import page_locked_rate, plain_rate, read_rates
from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.cli.bench.engines import release_memory
from modelscope_polylm.cli.bench.measure import timed
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.snapshot import Snapshot, open_snapshot


def loading_times(folder: Path, device: str, threads: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One set of figures: seconds of each part, and the rates that bound them, in bytes per second."""
    target = torch.device(device)
    is_gpu = target.type == "cuda"
    dtype = torch.bfloat16 if is_gpu else torch.float32
    imports = timed(lambda: imported(target))
    snapshot, seconds = timed_parts(folder, target, dtype)
    gc.collect()  # the backend is gone, its memory is kept for the next load
    seconds["load again"] = timed(lambda: snapshot.weight_files.load(snapshot.config, target, dtype))
    release_memory()
    yield {
        "device": torch.cuda.get_device_name(target) if is_gpu else "CPU",
        "torch": torch.__version__,
        "bytes": 2 * snapshot.config.parameters,  # of bf16 weights, whatever else the files hold
        "seconds": seconds,
        "import seconds": imports,
        "rates": limits(snapshot, target, threads),
    }


def imported(target: torch.device) -> None:
    """What belongs to the imports, which are no part of loading: the CUDA context, and Triton beside torch."""
    torch.empty(1, device=target)
    if target.type == "cuda":
        importlib.import_module("triton")


def timed_parts(folder: Path, target: torch.device, dtype: torch.dtype) -> tuple[Snapshot, dict[str, float]]:
    """Open, load, and compute a token."""
    start = time.perf_counter()
    snapshot = open_snapshot(folder)
    opened = time.perf_counter()
    backend = NativeBackend(snapshot, target, dtype)
    if target.type == "cuda":
        torch.cuda.synchronize()
    loaded = time.perf_counter()
    next(backend.stream([[5, 6, 7]], GenerationOptions.from_layers({"max_new_tokens": 2, "num_beams": 1})))
    ready = time.perf_counter()
    return snapshot, {"open": opened - start, "load": loaded - opened, "first token": ready - loaded}


def limits(snapshot: Snapshot, target: torch.device, threads: Sequence[int]) -> dict[str, float]:
    """What bounds loading, by name."""
    files, is_gpu = snapshot.weight_files.files, target.type == "cuda"
    read = read_rates([file.path for file in files], threads, page_locked=is_gpu)
    rates = {f"read {name}": rate for name, rate in read.items()}
    if is_gpu:
        rates["page-locked copy to the device"] = page_locked_rate(target)
    rates["plain .to() of mapped tensors"] = plain_rate(files, target)
    return rates
