"""`python -m benchmarks.packaging --shape 13b --folder /tmp`: `polylm package` next to a plain copy of the same files.

Writes a snapshot of random weights as .bin shards below --folder, which needs twice its size, times a copy of the
weight files and then the packaging, both from the disk to the disk, and removes everything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.snapshot_files import write_snapshot
from modelscope_polylm.cli.bench.workloads import SHAPES
from modelscope_polylm.packaging.package import package_snapshot


def main() -> None:
    """Parse the arguments, make the snapshot and time both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        write_snapshot(source, arguments.shape, "bin")
        size = sum(path.stat().st_size for path in source.iterdir())
        print(f"{arguments.shape}: {size / 1e9:.2f} GB", flush=True)
        for _ in range(arguments.repeats):
            copy = copy_seconds(source, out)
            print(f"copy {copy:.1f} s", flush=True)
            whole, first = package_seconds(source, out, "1.7b" if arguments.shape == "1.7b" else "13b")
            print(f"package {whole:.1f} s, {first:.1f} s of it before the weights: {whole / copy:.2f} times the copy")


def copy_seconds(source: Path, out: Path) -> float:
    """Copy the files and flush them to the disk."""
    drop_cache(source)
    start = time.perf_counter()
    out.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, out / path.name)
        with (out / path.name).open("rb+") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def package_seconds(source: Path, out: Path, release: str) -> tuple[float, float]:
    """Package the files. Returns the seconds in all, and those before the first weight is written."""
    drop_cache(source)
    written: list[float] = []
    start = time.perf_counter()
    package_snapshot(source, out, release=release, progress=lambda done, total: written.append(time.perf_counter()))
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds, written[0] - start


def drop_cache(folder: Path) -> None:
    """Flush a folder's files to the disk and drop them from the page cache."""
    for path in filter(Path.is_file, folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
