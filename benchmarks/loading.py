"""`python -m benchmarks.loading --folder /dev/shm/polylm`: from files in the page cache to the first token.

Writes a snapshot of random weights below --folder (a tmpfs such as /dev/shm counts as page cache) for each layout of
--layout in turn, and deletes it again. In between two fresh processes time opening, loading and the first token,
imports apart; the first may compile kernels. Beside them stand the limits: how fast the same files are read into memory
of the host, without a GPU in the way, by as many threads as load them and by one for each core; a page-locked copy to
the device; and what a plain `.to(device)` of mapped tensors reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.loading_snapshot import LAYOUTS, stored_bytes, write_snapshot
from benchmarks.loading_times import loading_times
from benchmarks.own_process import run_apart
from modelscope_polylm.cli.bench.workloads import SHAPES
from modelscope_polylm.network.loader import READERS

PROCESSES = 2


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of each process for each layout."""
    if arguments.read_only:
        yield from timed_processes("as it is", arguments.folder, arguments)
        return
    for layout in arguments.layout:
        folder = arguments.folder / layout
        check_space(arguments.folder, stored_bytes(arguments.shape, layout))
        try:
            start = time.perf_counter()
            write_snapshot(folder, arguments.shape, layout)
            print(f"{layout}: written in {time.perf_counter() - start:.0f} s", flush=True)
            yield from timed_processes(layout, folder, arguments)
        finally:
            if not (arguments.keep and layout == arguments.layout[-1]):
                shutil.rmtree(folder, ignore_errors=True)


def timed_processes(layout: str, folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The same in fresh processes, one after the other."""
    for number in range(1, PROCESSES + 1):
        for figures in run_apart(loading_times, folder, arguments.device, arguments.threads):
            yield {"layout": layout, "process": number, **figures}


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError where the snapshot does not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{folder} has room for {free / 1e9:.1f} GB and {needed / 1e9:.1f} GB are written: take another.")


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of a process."""
    seconds, size = figures["seconds"], figures["bytes"]
    rate = size / seconds["load"]
    yield (
        f"{figures['layout']}, process {figures['process']}, {size / 1e9:.1f} GB: open {seconds['open']:.2f} s, "
        f"load {seconds['load']:.2f} s ({rate / 1e9:.1f} GB/s), first token {seconds['first token']:.2f} s, "
        f"in all {sum(seconds[part] for part in ('open', 'load', 'first token')):.2f} s, "
        f"behind {figures['import seconds']:.2f} s for Triton and a CUDA context"
    )
    again = seconds["load again"]
    yield f"  load again, into memory that is allocated: {again:.2f} s ({size / again / 1e9:.1f} GB/s)"
    for name, limit in figures["rates"].items():
        yield f"  {name}: {limit / 1e9:.1f} GB/s, of which loading reaches {rate / limit:.0%}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--layout", type=listed, default=["safetensors"], help="safetensors, bin, or both: a,b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="leave the last snapshot there, for --read-only")
    parser.add_argument("--read-only", action="store_true", help="--folder is a snapshot: time it as it is")
    parser.add_argument("--threads", type=lambda text: [int(part) for part in listed(text)], help="that read the files")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    if unknown := set(arguments.layout) - set(LAYOUTS):
        parser.error(f"--layout names {', '.join(sorted(unknown))}: there are {', '.join(LAYOUTS)}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here: try the benchmark with --device cpu --shape small")
    arguments.threads = arguments.threads or sorted({READERS, os.cpu_count() or READERS})
    return arguments


def listed(text: str) -> Sequence[str]:
    """'a,b' -> ['a', 'b']."""
    return text.split(",")


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


if __name__ == "__main__":
    main()
