"""`python -m benchmarks.loading_variants --folder /dev/shm/polylm`: loading with other readers and pieces.

Writes a snapshot of random weights there, loads it twice with each of --variants, all in one process, and deletes it.
The first load of a variant also locks the pages of its buffers; the second finds them.
"""

from __future__ import annotations

import argparse
import gc
import shutil
from pathlib import Path

import torch

from benchmarks.loading import check_space, listed
from benchmarks.loading_snapshot import LAYOUTS, stored_bytes, write_snapshot
from modelscope_polylm.app.bench.measure import timed
from modelscope_polylm.app.bench.shapes import SHAPES
from modelscope_polylm.network import upload
from modelscope_polylm.snapshot import open_snapshot


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="safetensors")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--variants", type=listed, default=["16x16", "16x32", "16x64", "8x64"], help="READERSxMIB,...")
    return parser.parse_args()


def main() -> None:
    """Print the seconds and the rate of both loads of each variant."""
    arguments = parsed()
    device, folder = torch.device(arguments.device), arguments.folder / "variants"
    check_space(arguments.folder, stored_bytes(arguments.shape, arguments.layout))
    try:
        write_snapshot(folder, arguments.shape, arguments.layout)
        snapshot = open_snapshot(folder)
        torch.empty(1, device=device)  # the CUDA context counts as an import
        for variant in arguments.variants:
            readers, mebibytes = map(int, variant.split("x"))
            upload.READERS, upload.CHUNK_BYTES = readers, mebibytes << 20
            for load in ("first", "second"):
                gc.collect()
                seconds = timed(lambda: snapshot.weight_files.load(snapshot.config, device, torch.bfloat16))
                rate = 2e-9 * snapshot.config.parameters / seconds
                print(
                    f"{readers} readers of {mebibytes} MiB, {load} load: {seconds:.2f} s ({rate:.1f} GB/s)", flush=True
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
