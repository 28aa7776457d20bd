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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.ragged import Request, fresh_requests
from benchmarks.serving import COMPLETIONS, events, free_port, percentiles, running
from benchmarks.snapshot_files import write_snapshot
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


@dataclass
class Times:
    """What clients saw of a round of requests. Seconds are wall time.

    Attributes:
        first: from sending a request to the first part of its answer.
        between: between two parts of an answer that follow each other, of all answers.
        tokens: new tokens of all answers.
        seconds: until the last answer was complete.
    """

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The figures, times in milliseconds."""
        return {
            "answers": len(self.first),
            "seconds": round(self.seconds, 2),
            "tokens/s": round(self.tokens / self.seconds, 1),
            "parts/token": round((len(self.between) + len(self.first)) / self.tokens, 3),
            "first token ms": percentiles(self.first),
            "between tokens ms": percentiles(self.between),
        }


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
    except (RuntimeError, aiohttp.ClientError) as error:
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
        source = folder / f"source-{shape}"
        write_snapshot(source, shape, "safetensors")
        package_snapshot(source, package, release="13b")
        for file in source.iterdir():
            file.unlink()
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
            times = asyncio.run(ask_all(url, requests, arrivals(len(requests), rate)))
            return {**facts, "rate": rate, "requests/s": round(len(requests) / times.seconds, 2), **times.summary()}

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


async def ask_all(url: str, requests: Sequence[Request], starts: Sequence[float]) -> Times:
    """Send each request at its time and note what comes."""
    times, begun = Times(), time.perf_counter()

    async def at(start: float, request: Request) -> None:
        await asyncio.sleep(start - (time.perf_counter() - begun))
        await ask(session, request, times)

    timeout, connector = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(at(start, request) for start, request in zip(starts, requests, strict=True)))
    times.seconds = time.perf_counter() - begun
    return times


async def ask(session: aiohttp.ClientSession, request: Request, times: Times) -> None:
    """Stream one answer. Raises RuntimeError where it is refused or has another number of tokens."""
    fixed = {"max_tokens": request.new, "temperature": 0.0, "ignore_eos": True}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    last, usage = time.perf_counter(), dict[str, int]()
    seen = times.first
    async with session.post(
        COMPLETIONS, json={"model": "model", "prompt": request.prompt, **fixed, **streamed}
    ) as found:
        if found.status != 200:
            raise RuntimeError(f"{found.status}: {await found.text()}")
        async for event in events(found):
            usage = event.get("usage") or usage
            if is_part(event):
                seen.append((now := time.perf_counter()) - last)
                last, seen = now, times.between
    if usage.get("completion_tokens") != request.new:
        raise RuntimeError(f"An answer of {request.new} tokens came as {usage}.")
    times.tokens += request.new


def is_part(event: Mapping[str, Any]) -> bool:
    """Whether an event of a stream brings text."""
    return any(choice.get("text") for choice in event.get("choices", ()))


if __name__ == "__main__":
    main()
