"""`python -m benchmarks.loading --shape 13b`: from files in the page cache to the first token, in a fresh process.

Writes a snapshot of random weights to --folder (a tmpfs such as /dev/shm counts as page cache), then times in a new
process: opening and loading, the first token, and, as the limit, one page-locked copy of as many bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from modelscope_polylm.app.bench.shapes import SHAPES, shape_config
from modelscope_polylm.network.weights import PROJECTION, declared_shapes

TOKENIZER = Path(__file__).parent.parent / "modelscope_polylm" / "tiny" / "tokenizer.model"
SHARD_BYTES = 5_000_000_000


def write_snapshot(folder: Path, shape: str, layout: str) -> None:
    """Random bf16 weights of a published shape as safetensors or .bin shards, with a small tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = shape_config(shape)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    shutil.copy(TOKENIZER, folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, size in declared_shapes(config).items():
        stored = size[::-1] if PROJECTION.fullmatch(name) else size
        if sum(2 * math.prod(each) for each in [*shards[-1].values(), stored]) > SHARD_BYTES:
            shards.append({})
        shards[-1][f"transformer.{name}"] = stored
    stem, suffix = ("model", "safetensors") if layout == "safetensors" else ("pytorch_model", "bin")
    index = {}
    for number, shard in enumerate(shards, 1):
        file = folder / f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        tensors = {name: _random_tensor(size) for name, size in shard.items()}
        save_file(tensors, file) if layout == "safetensors" else torch.save(tensors, file)
        index.update(dict.fromkeys(shard, file.name))
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _random_tensor(size: tuple[int, ...]) -> torch.Tensor:
    """16 million random numbers, repeated: as good for timing as 14 billion, and made in seconds on a CPU."""
    # -> size, bf16
    count = math.prod(size)
    drawn = torch.empty(min(count, 1 << 24), dtype=torch.bfloat16).normal_(0, 0.02)
    return drawn.repeat(-(-count // len(drawn)))[:count].view(size).clone()


def time_loading(folder: Path, device: str) -> None:
    """Print the seconds of each part, imports apart."""
    from modelscope_polylm.backends import create_backend
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.snapshot import open_snapshot

    target = torch.device(device)
    torch.empty(1, device=target)  # the CUDA context counts as an import
    start = time.perf_counter()
    snapshot = open_snapshot(folder)
    opened = time.perf_counter()
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    backend = create_backend("native", snapshot, target, dtype)
    if target.type == "cuda":
        torch.cuda.synchronize()
    loaded = time.perf_counter()
    next(backend.stream([[5, 6, 7]], GenerationOptions.from_layers({"max_new_tokens": 2, "num_beams": 1})))
    ready = time.perf_counter()
    size = snapshot.config.parameters * 2
    print(
        f"{size / 1e9:.1f} GB: open {opened - start:.2f} s, load {loaded - opened:.2f} s "
        f"({size / (loaded - opened) / 1e9:.1f} GB/s), first token {ready - loaded:.2f} s, in all {ready - start:.2f} s"
    )
    if target.type == "cuda":
        print(f"page-locked copy to the device: {_pinned_rate(target) / 1e9:.1f} GB/s")


def _pinned_rate(device: torch.device) -> float:
    source = torch.ones(1 << 30, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    target.copy_(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(4):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return 4 * source.nbytes / (time.perf_counter() - start)


def main() -> None:
    """Write the snapshot and time a fresh process, twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--layout", choices=["safetensors", "bin"], default="safetensors")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--read-only", action="store_true", help="time a snapshot that is there already")
    arguments = parser.parse_args()
    if arguments.read_only:
        time_loading(arguments.folder, arguments.device)
        return
    write_snapshot(arguments.folder, arguments.shape, arguments.layout)
    again = [sys.executable, "-m", "benchmarks.loading", "--read-only", "--folder", str(arguments.folder)]
    for _ in range(2):
        subprocess.run([*again, "--device", arguments.device], check=True)


if __name__ == "__main__":
    main()
