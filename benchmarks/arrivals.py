"""`python -m benchmarks.arrivals --shape 13b --folder /dev/shm/polylm`: requests at random times, to both servers.

Each server is alone on the device, with the same package of random weights. Requests have the lengths of
`benchmarks.ragged`, come at the times of a Poisson process and are streamed. First all of them come at once, which
gives the highest rate that a server holds; then they come at shares of the first engine's highest rate. A client notes
when each part of its answer came: the time to the first one, and the times between one and the next.

A request that is refused, fails or has too few tokens ends the run. The package is written below --folder where it is
not there yet, and kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.ragged import Request, fresh_requests
from benchmarks.serving import COMPLETIONS, Tally, Task, ask, client_session, free_port, model_folder, running
from modelscope_polylm.cli.bench.workloads import SHAPES, shape_config
from modelscope_polylm.packaging.package import package_snapshot

MOST_ROWS = "256"
COMMANDS = {
    "polylm": (
        *("modelscope_polylm", "serve", "{model}", "--name", "model", "--num-beams", "1"),
        *("--max-rows", MOST_ROWS, "--max-queue", "1000"),
    ),
    "vllm": (
        *("vllm.entrypoints.openai.api_server", "--model", "{model}", "--served-model-name", "model"),
        *("--dtype", "bfloat16", "--max-num-seqs", MOST_ROWS, "--generation-config", "vllm"),
    ),
}
"""Name of a server to its command after `python -m`, without its port."""


def main() -> None:
    """Measure one server after the other; print and write each figure as it comes."""
    arguments = parsed()
    package = written_package(arguments.folder, arguments.shape)
    facts: dict[str, Any] = {"shape": arguments.shape, "requests": arguments.requests, "results": []}
    rates: list[float] = arguments.rates
    try:
        for name in arguments.engines:
            for result in measured(name, package, rates, arguments):
                facts["results"].append(result)
                print(json.dumps(result), flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            rates = rates or [result["rate"] for result in facts["results"] if result["rate"]]
    except (RuntimeError, ConnectionError, aiohttp.ClientError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--folder", type=Path, required=True, help="where the package is, or is written")
    parser.add_argument("--engines", nargs="+", choices=list(COMMANDS), default=list(COMMANDS)[::-1])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.8, 0.9, 1.0], help="of the highest rate")
    parser.add_argument("--rates", type=float, nargs="+", default=[], help="requests/s, instead of shares")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    return parser.parse_args()


def written_package(folder: Path, shape: str) -> Path:
    """The package of a shape below a folder, which is written where it is not there yet."""
    package = folder / f"package-{shape}"
    if not package.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with model_folder("", shape, folder) as source:
            package_snapshot(source, package, release="13b")
    return package


def measured(
    name: str, package: Path, rates: Sequence[float], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Start a server of COMMANDS and yield the figures of each round; of the warm-up none."""
    port, vocab_size = free_port(), shape_config(arguments.shape).vocab_size
    command, begun = [part.format(model=package) for part in COMMANDS[name]], time.perf_counter()
    with running([*command, "--port", str(port)], port) as (url, _):
        facts = {"engine": name, "ready s": round(time.perf_counter() - begun, 1)}

        def figures(number: int, rate: float | None) -> dict[str, Any]:
            requests = fresh_requests(arguments.requests, number, vocab_size)
            tally = asyncio.run(ask_all(url, requests, arrivals(len(requests), rate)))
            return {**facts, "rate": rate, "requests/s": round(tally.right / tally.seconds, 2), **tally.summary()}

        figures(-1, None)
        yield (highest := figures(0, None))
        for number, rate in enumerate(rates or [round(share * highest["requests/s"], 2) for share in arguments.shares]):
            yield figures(number + 1, rate)


def arrivals(count: int, rate: float | None) -> list[float]:
    """Seconds after the start at which requests come, the same in every run; all at once where there is no rate."""
    if rate is None:
        return [0.0] * count
    source, now, found = random.Random(f"arrivals {rate}"), 0.0, []
    for _ in range(count):
        now += source.expovariate(rate)
        found.append(now)
    return found


async def ask_all(url: str, requests: Sequence[Request], starts: Sequence[float]) -> Tally:
    """Send each request at its time. Raises RuntimeError where one is refused or has another number of tokens."""
    tally, begun = Tally(), time.perf_counter()

    async def at(start: float, request: Request) -> None:
        await asyncio.sleep(start - (time.perf_counter() - begun))
        fixed = {"max_tokens": request.new, "temperature": 0.0, "ignore_eos": True}
        await ask(session, Task(COMPLETIONS, {"model": "model", "prompt": request.prompt, **fixed}), tally)

    async with client_session(url) as session:
        await asyncio.gather(*(at(start, request) for start, request in zip(starts, requests, strict=True)))
    tally.seconds = time.perf_counter() - begun
    if (tally.right, tally.tokens) != (len(requests), sum(request.new for request in requests)):
        raise RuntimeError(f"Of {len(requests)} answers some are missing or have other lengths: {tally.summary()}")
    return tally


if __name__ == "__main__":
    main()
