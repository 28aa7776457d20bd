"""`python -m benchmarks.serving_costs --price 3.00`: what fits on which GPUs, and what a million tokens cost.

Memory follows from the published shapes. Speeds are read from the files that `polylm bench` and
`benchmarks.vllm_backend` wrote with --out: the rows that are decoded at once are the load. The price of a GPU hour is
an input, not a quote. `--write docs/scale.md` renews the tables of the page, with the price that stands in it if none
is given.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from modelscope_polylm.cli.bench.workloads import shape_config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
GPUS = (("24 GB", 24e9), ("40 GB", 40e9), ("80 GB", 80e9), ("141 GB (H200)", 141e9))
UTILIZATION = 0.92
"""vLLM's default share of a GPU's memory."""
WORKSPACE = 3e9
"""Bytes on each GPU for activations, captured graphs and libraries: an assumption."""
WORK = re.compile(r"greedy, (?P<rows>\d+) rows?, (?P<prompt>\d+) \+ (?P<new>\d+)")


class Speed(NamedTuple):
    """A measured load: rows at once, tokens of prompt and answer, and output tokens per second of one GPU."""

    engine: str
    device: str
    rows: int
    prompt: int
    new: int
    tokens_per_second: float


def bytes_per_token(shape: str) -> int:
    """Keys and values of a token in bf16, in all layers."""
    config = shape_config(shape)
    return 2 * config.layers * config.hidden_size * 2


def sizing_lines() -> Iterator[str]:
    """A table: how many tokens of KV cache fit next to the weights."""
    yield "| shape | weights, bf16 | KV per token | GPUs | tokens in the KV cache | rows of 2,048 tokens |"
    yield "|---|---|---|---|---|---|"
    for shape in ("1.7b", "13b"):
        weights = 2 * shape_config(shape).parameters
        for name, memory in GPUS:
            for count in (1, 2, 4) if shape == "13b" else (1,):
                tokens = int((UTILIZATION * memory - WORKSPACE) * count - weights) // bytes_per_token(shape)
                room = f"{tokens:,} | {tokens // 2048:,}" if tokens >= 2048 else "does not fit | "
                yield (
                    f"| {shape.upper()} | {weights / 1e9:.2f} GB | {bytes_per_token(shape):,} bytes | {count} x {name} "
                    f"| {room} |"
                )


def speeds(files: Sequence[Path]) -> list[Speed]:
    """The greedy batches in result files."""
    found = []
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        for result in content["results"]:
            work = WORK.fullmatch(result["work"])
            if work is None or result["unit"] not in ("ms/step", "tokens/s"):
                continue
            rows, value = int(work["rows"]), float(result["value"])
            per_second = value if result["unit"] == "tokens/s" else rows * 1000 / value
            sizes = (int(work["prompt"]), int(work["new"]))
            found.append(Speed(result["engine"], content["device"], rows, *sizes, per_second))
    return sorted(found)


def cost_lines(files: Sequence[Path], price: float) -> Iterator[str]:
    """A table: the cost of a million output tokens at each measured load."""
    price_column = f"a million output tokens at {price:.2f} an hour"
    yield f"| engine | GPU | rows at once | prompt + answer | tokens/s | {price_column} |"
    yield "|---|---|---|---|---|---|"
    for speed in speeds(files):
        cost = price / (speed.tokens_per_second * 3600) * 1e6
        yield (
            f"| {speed.engine} | {speed.device} | {speed.rows} | {speed.prompt} + {speed.new} "
            f"| {speed.tokens_per_second:,.0f} | {cost:,.2f} |"
        )


def result_files() -> list[Path]:
    """The results of the repository that hold batches, except those from a CPU."""
    return sorted((ROOT / "benchmarks" / "results").glob("*-decode.json")) + sorted(
        (ROOT / "benchmarks" / "results").glob("*-vllm-backend.json")
    )


def price_of(page: str) -> float:
    """The price with which a page's table was made. Raises ValueError if there is none."""
    found = re.search(r"tokens at (\d+\.\d\d) an hour", page)
    if found is None:
        raise ValueError("The page names no price: give --price.")
    return float(found[1])


def renewed(page: str, files: Sequence[Path], price: float) -> str:
    """The page with its two tables written anew."""
    for name, lines in (("memory", sizing_lines()), ("costs", cost_lines(files, price))):
        begin, end = f"<!-- benchmarks.serving_costs {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
        table = "\n".join([begin, *lines, end])
        page = pattern.sub(lambda _, table=table: table, page)  # type: ignore[misc]
    return page


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, help="of one GPU for one hour, in any currency")
    parser.add_argument("--results", type=Path, nargs="*", help="result files; those of the repository if none")
    parser.add_argument("--write", type=Path, help="the page to renew")
    arguments = parser.parse_args()
    files = arguments.results or result_files()
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        price = price_of(page) if arguments.price is None else arguments.price
        arguments.write.write_text(renewed(page, files, price), encoding="utf-8")
        return
    if arguments.price is None:
        parser.error("--price is needed: it is an assumption that only you can make")
    print("\n".join([*sizing_lines(), "", *cost_lines(files, arguments.price)]))


if __name__ == "__main__":
    main()
