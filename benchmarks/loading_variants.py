"""`python -m benchmarks.loading_variants --folder /dev/shm/polylm`: loading with other readers and pieces.

Writes a snapshot of random weights there, loads it twice with each of --variants, in a process for each, and deletes
it. The first load also locks the pages of its buffers and allocates the weights' memory; the second finds both.
"""

from __future__ import annotations

import argparse
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.loading import check_space, listed
from benchmarks.loading_snapshot import LAYOUTS, stored_bytes, write_snapshot
from benchmarks.loading_times import imported
from benchmarks.own_process import run_apart
from modelscope_polylm.cli.bench.measure import timed
from modelscope_polylm.cli.bench.workloads import SHAPES
from modelscope_polylm.network import loader as upload
from modelscope_polylm.snapshot import open_snapshot

DEFAULT = ["8x16", "10x16", "12x16", "16x16", "12x32", "16x32", "16x64"]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="safetensors")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--variants", type=listed, default=DEFAULT, help="READERSxMIB,...")
    return parser.parse_args()


def load_seconds(folder: Path, device: torch.device, variant: str) -> Iterator[tuple[int, float]]:
    """Parameters of the snapshot and seconds of a load, twice; for a process of its own."""
    readers, mebibytes = map(int, variant.split("x"))
    upload.READERS, upload.CHUNK_BYTES = readers, mebibytes << 20
    snapshot = open_snapshot(folder)
    imported(device)
    for _ in range(2):
        gc.collect()
        seconds = timed(lambda: snapshot.weight_files.load(snapshot.config, device, torch.bfloat16))
        yield snapshot.config.parameters, seconds


def main() -> None:
    """Print the seconds and the rate of both loads of each variant."""
    arguments = parsed()
    device, folder = torch.device(arguments.device), arguments.folder / "variants"
    check_space(arguments.folder, stored_bytes(arguments.shape, arguments.layout))
    try:
        write_snapshot(folder, arguments.shape, arguments.layout)
        for variant in arguments.variants:
            loads = zip(("first", "second"), run_apart(load_seconds, folder, device, variant), strict=True)
            for load, (parameters, seconds) in loads:
                rate = 2e-9 * parameters / seconds
                print(f"{variant}, {load} load: {seconds:.2f} s ({rate:.1f} GB/s)", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
