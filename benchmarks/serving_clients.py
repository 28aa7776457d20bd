"""Clients of `polylm serve` for the benchmarks: they stream, check their answers, and note the times."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import aiohttp

COUNTED = {"include_usage": True}


@dataclass(frozen=True)
class Task:
    """A request's body, and the answer that it must get; None: any."""

    path: str
    body: dict[str, Any]
    expected: str | None = None


@dataclass
class Tally:
    """What a group of clients saw. Seconds are wall time."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    busy: int = 0
    retry_after: set[str] = field(default_factory=set)
    tokens: int = 0
    first_text: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The figures, times in milliseconds."""
        return {
            "answers": self.right,
            "wrong answers or errors": len(self.wrong),
            "first wrong": self.wrong[:3],
            "refused with 429": self.busy,
            "their Retry-After": sorted(self.retry_after),
            "seconds": round(self.seconds, 2),
            "tokens/s": round(self.tokens / self.seconds, 1),
            "first text ms": percentiles(self.first_text),
            "whole answer ms": percentiles(self.whole),
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, in milliseconds."""
    if len(seconds) < 2:
        return {}
    cuts = quantiles(seconds, n=20, method="inclusive")
    return {"p50": round(cuts[9] * 1e3, 1), "p95": round(cuts[18] * 1e3, 1), "max": round(max(seconds) * 1e3, 1)}


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; a stream without its end is an error."""
    async for line in response.content:
        if line == b"data: [DONE]\n":
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    raise ConnectionError("The stream has no end.")


async def ask(session: aiohttp.ClientSession, task: Task, tally: Tally) -> None:
    """Send one request and note what comes."""
    start, first, text, tokens = time.perf_counter(), 0.0, "", 0
    async with session.post(task.path, json={**task.body, "stream": True, "stream_options": COUNTED}) as response:
        if response.status == 429:
            tally.busy += 1
            tally.retry_after.add(response.headers.get("Retry-After", "none"))
            return
        if response.status != 200:
            raise ConnectionError(f"{response.status}: {await response.text()}")
        async for event in events(response):
            if "error" in event:
                raise ConnectionError(json.dumps(event))
            for choice in event["choices"]:
                text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            first = first or (time.perf_counter() if text else 0.0)
            tokens += event.get("usage", {}).get("completion_tokens", 0)
    if task.expected not in (None, text):
        raise ValueError(f"{text!r} instead of {task.expected!r}")
    tally.right += 1
    tally.tokens += tokens
    tally.first_text.append(first - start)
    tally.whole.append(time.perf_counter() - start)


async def client(
    session: aiohttp.ClientSession, tasks: Sequence[Task], goes_on: Callable[[int], bool], tally: Tally
) -> None:
    """Ask one thing after the other; wait a little when the server is busy."""
    for number, task in enumerate(itertools.cycle(tasks)):
        if not goes_on(number):
            return
        busy = tally.busy
        try:
            await ask(session, task, tally)
        except (aiohttp.ClientError, ConnectionError, ValueError, asyncio.TimeoutError) as error:
            tally.wrong.append(f"{type(error).__name__}: {error}")
        if tally.busy > busy:
            await asyncio.sleep(0.05)


async def load(
    url: str, tasks: Sequence[Task], clients: int, *, seconds: float = float("inf"), requests: float = float("inf")
) -> Tally:
    """Ask with several clients at once, for some time or so many requests each."""
    tally, start = Tally(), time.perf_counter()

    def goes_on(number: int) -> bool:
        return number < requests and time.perf_counter() - start < seconds

    timeout, connector = aiohttp.ClientTimeout(total=300), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        turned = [[*tasks[first:], *tasks[:first]] for first in spread(clients, len(tasks))]
        await asyncio.gather(*(client(session, own, goes_on, tally) for own in turned))
    tally.seconds = time.perf_counter() - start
    return tally


def spread(clients: int, tasks: int) -> list[int]:
    """Where each client begins, so that neighbours ask for different things."""
    return [index * tasks // clients for index in range(clients)]


async def kill(url: str, task: Task, clients: int) -> None:
    """Ask, and go away as soon as something comes."""

    async def one() -> None:
        async with aiohttp.ClientSession(url) as session, session.post(task.path, json=task.body) as response:
            await response.content.readany()
            response.close()

    await asyncio.gather(*(one() for _ in range(clients)))
