"""`python -m benchmarks.loading --folder /dev/shm/polylm`: from files in the page cache to the first token.

Writes a snapshot of random weights below --folder (a tmpfs such as /dev/shm counts as page cache) for each layout of
--layout in turn, and deletes it again. Two fresh processes each time opening, loading and the first token, without
imports; the first one may compile kernels. The bounds are measured in the same process: how fast as many threads as
load the files, and one for each core, read them into memory of the host; a copy from pinned memory to the device; and
what the libraries' own loaders reach.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import gc
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.fresh_process import in_fresh_process
from benchmarks.snapshot_files import LAYOUTS, write_snapshot
from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.cli.bench.engines import fixed_length, release_memory
from modelscope_polylm.cli.bench.run import timed
from modelscope_polylm.cli.bench.workloads import SHAPES
from modelscope_polylm.network.loader import READERS
from modelscope_polylm.snapshot import Snapshot, open_snapshot

PROCESSES = 2
CHUNK_BYTES = 8 << 20
LIBRARY_BYTES = 3_000_000_000
"""As much as the libraries' loaders read, or a file more."""


def main() -> None:
    """Time all layouts; print and write what is known after each process."""
    arguments = parsed()
    facts: dict[str, Any] = {"shape": arguments.shape, "readers": READERS, "results": []}
    try:
        for figures in measured(arguments):
            print("\n".join(lines(figures)), flush=True)
            facts["results"].append(figures)
            if arguments.out:
                arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--layout", nargs="+", choices=sorted(LAYOUTS), default=["safetensors"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--read-only", action="store_true", help="--folder is a snapshot: time it as it is")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here: try the benchmark with --device cpu --shape small")
    return arguments


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of each process for each layout."""
    if arguments.read_only:
        yield from timed_processes("as it is", arguments.folder, arguments.device)
        return
    for layout in arguments.layout:
        folder = arguments.folder / layout
        try:
            seconds = timed(functools.partial(write_snapshot, folder, arguments.shape, layout))
            print(f"{layout}: written in {seconds:.0f} s", flush=True)
            yield from timed_processes(layout, folder, arguments.device)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def timed_processes(layout: str, folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """Yield the figures of fresh processes, one after the other."""
    for number in range(1, PROCESSES + 1):
        for figures in in_fresh_process(loading_times, folder, device):
            yield {"layout": layout, "process": number, **figures}


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is printed of a process."""
    seconds, size = figures["seconds"], figures["bytes"]
    rate = size / seconds["load"]
    yield (
        f"{figures['layout']}, process {figures['process']}, {size / 1e9:.1f} GB: open {seconds['open']:.2f} s, "
        f"load {seconds['load']:.2f} s ({rate / 1e9:.1f} GB/s), first token {seconds['first token']:.2f} s, "
        f"in all {sum(seconds[part] for part in ('open', 'load', 'first token')):.2f} s, "
        f"after {figures['import seconds']:.2f} s for Triton and a CUDA context"
    )
    again = seconds["load again"]
    yield f"  load again, into memory that is allocated: {again:.2f} s ({size / again / 1e9:.1f} GB/s)"
    for name, limit in figures["rates"].items():
        yield f"  {name}: {limit / 1e9:.1f} GB/s, of which loading reaches {rate / limit:.0%}"


def loading_times(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """Yield one set of figures: seconds of each part, and the rates that bound them, in bytes per second."""
    target = torch.device(device)
    is_gpu = target.type == "cuda"
    dtype = torch.bfloat16 if is_gpu else torch.float32
    imports = timed(lambda: import_late(target))
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
        "rates": limits(folder, target),
    }


def import_late(target: torch.device) -> None:
    """Do what belongs to the imports, which are no part of loading: the CUDA context, and Triton."""
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
    backend.generate([[5, 6, 7]], fixed_length(2))
    ready = time.perf_counter()
    return snapshot, {"open": opened - start, "load": loaded - opened, "first token": ready - loaded}


def limits(folder: Path, target: torch.device) -> dict[str, float]:
    """What bounds loading, by name, in bytes per second."""
    files = sorted(file for layout in LAYOUTS for file in folder.glob(f"*.{layout}"))
    threads = sorted({READERS, os.cpu_count() or READERS})
    rates = {f"read by {count} threads": read_rate(files, count) for count in threads}
    if target.type == "cuda":
        rates["pinned copy to the device"] = pinned_rate(target)
    rates["the library's loader"] = library_rate(files, target)
    return rates


def read_rate(files: Sequence[Path], threads: int) -> float:
    """How fast threads read the files into buffers of the host, by position."""
    opened = [file.open("rb", buffering=0) for file in files]
    sizes = [os.fstat(file.fileno()).st_size for file in opened]
    waiting = iter(
        [(file, start) for file, size in zip(opened, sizes, strict=True) for start in range(0, size, CHUNK_BYTES)]
    )

    def read(buffer: bytearray) -> None:
        for file, start in waiting:  # shared: each thread takes the next one
            os.preadv(file.fileno(), [buffer], start)

    buffers = [bytearray(CHUNK_BYTES) for _ in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as readers:
        seconds = timed(lambda: list(readers.map(read, buffers)))
    for file in opened:
        file.close()
    return sum(sizes) / seconds


def pinned_rate(device: torch.device) -> float:
    """How fast a GPU copies from pinned memory."""
    source = torch.ones(1 << 30, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    target.copy_(source)
    return 4 * source.nbytes / timed(lambda: [target.copy_(source, non_blocking=True) for _ in range(4)])


def library_rate(files: Sequence[Path], device: torch.device) -> float:
    """How fast safetensors or torch bring the first files to the device."""
    size, start = 0, time.perf_counter()
    for file in files:
        if file.suffix == ".safetensors":
            tensors = load_file(file, device=str(device))
        else:
            tensors = torch.load(file, map_location=device, mmap=True)
        size += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
        if size >= LIBRARY_BYTES:
            break
    if device.type == "cuda":
        torch.cuda.synchronize()
    return size / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
