"""`python -m benchmarks.serving load` and `python -m benchmarks.serving overhead`: the server under load, and its cost.

Both start `polylm serve` in a process of its own and ask it with streaming clients.

`load` serves the bundled model: one client, then 32 for a minute, then twice as many, then clients that are killed,
then one client again. Every client checks each of its answers. The server's memory is watched.

`overhead` compares tokens/s of the bare engine, called with all prompts together, with those of the server, asked by as
many clients. `--shape 13b` writes a snapshot of random weights below --folder and deletes it again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]
import torch

from benchmarks.fresh_process import in_fresh_process
from benchmarks.snapshot_files import write_snapshot
from modelscope_polylm.cli.bench.engines import NO_END
from modelscope_polylm.cli.bench.run import timed
from modelscope_polylm.cli.bench.workloads import SHAPES
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.terminal.models import find_model, load_model
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request

SENTENCES = (SENTENCE, "Rome is the capital of Italy.", "Tokyo is the capital of Japan.")
GREEDY = {"num_beams": 1}
GREEDY_FLAGS = ("--num-beams", "1")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG = {"model": "tiny", "prompt": "a", "num_beams": 1, "min_new_tokens": 480, "max_tokens": 480, "stream": True}
KILLED_CLIENTS = 16


@dataclass(frozen=True)
class Task:
    """A request's body, and the answer that it must get; None: any."""

    path: str
    body: dict[str, Any]
    expected: str | None = None


@dataclass
class Tally:
    """What a group of clients saw. Seconds are wall time; those between are from a part of an answer to the next."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    busy: int = 0
    retry_after: set[str] = field(default_factory=set)
    tokens: int = 0
    first_text: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
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
            "between texts ms": percentiles(self.between),
            "whole answer ms": percentiles(self.whole),
        }


def main() -> None:
    """Parse the arguments, measure, print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    kinds = parser.add_subparsers(dest="kind", required=True)
    load = kinds.add_parser("load")
    load.add_argument("--clients", type=int, default=32)
    load.add_argument("--seconds", type=float, default=60.0)
    overhead = kinds.add_parser("overhead")
    overhead.add_argument("--model", default="tiny", help="a folder, a hub id or a short name")
    overhead.add_argument("--shape", choices=sorted(SHAPES), help="random weights instead of a model")
    overhead.add_argument("--folder", type=Path, help="where these are written, such as /dev/shm")
    overhead.add_argument("--device")
    overhead.add_argument("--dtype")
    overhead.add_argument("--clients", type=int, default=16)
    overhead.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    overhead.add_argument("--new", type=int, default=128, help="tokens of an answer")
    overhead.add_argument("--rounds", type=int, default=5, help="requests of each client, and calls of the engine")
    arguments = vars(parser.parse_args())
    out, is_load = arguments.pop("out"), arguments.pop("kind") == "load"
    figures = measure_load(**arguments) if is_load else measure_overhead(**arguments)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def measure_load(clients: int, seconds: float) -> dict[str, Any]:
    """All phases, one after the other."""
    tasks = translation_tasks()
    flags = ("--max-rows", str(clients), "--max-queue", str(clients), *GREEDY_FLAGS)
    figures: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    figures |= {"torch": torch.__version__, "flags": " ".join(flags)}
    with server("tiny", *flags) as (url, process):
        asyncio.run(load(url, tasks, 1, requests=len(tasks)))  # warm
        memory = Memory(process)
        phases: dict[str, tuple[int, dict[str, float]]] = {
            "one client": (1, {"requests": 100}),
            f"{clients} clients": (clients, {"seconds": seconds}),
            f"{2 * clients} clients": (2 * clients, {"seconds": seconds}),
        }
        for name, (count, limit) in phases.items():
            figures[name] = asyncio.run(load(url, tasks, count, **limit)).summary() | {"server MB": memory.mark()}
        asyncio.run(kill(url, Task(COMPLETIONS, LONG), KILLED_CLIENTS))
        figures[f"{KILLED_CLIENTS} killed clients"] = {"free after ms": round(seconds_until_free(url) * 1e3, 1)}
        figures["one client again"] = asyncio.run(load(url, tasks, 1, requests=100)).summary()
        figures["one client again"]["server MB"] = memory.mark()
    return figures


def measure_overhead(
    model: str, shape: str | None, folder: Path | None, device: str | None, dtype: str | None,
    clients: int, prompt: int, new: int, rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """The bare engine before and after, the server in between, and the ratio of their speeds."""
    with model_folder(model, shape, folder) as name:
        prompts = random_prompts(name, clients, prompt)
        bare = (name, device, dtype, prompts, new, rounds)
        before = next(iter(in_fresh_process(bare_engine, *bare)))
        tasks = [Task(COMPLETIONS, {"model": "model", "prompt": ids, **fixed_length(new)}) for ids in prompts]
        flags = [*(("--device", device) if device else ()), *(("--dtype", dtype) if dtype else ())]
        with server(name, "--name", "model", "--max-rows", str(clients), *GREEDY_FLAGS, *flags) as (url, _):
            asyncio.run(load(url, tasks, clients, requests=1))  # warm
            served = asyncio.run(load(url, tasks, clients, requests=rounds)).summary()
        after = next(iter(in_fresh_process(bare_engine, *bare)))
    speeds = [before.pop("tokens/s"), after.pop("tokens/s")]
    return {
        "model": shape or model,
        **before,
        "work": f"{clients} at once, {prompt} + {new} tokens, {rounds} rounds",
        "bare engine tokens/s": speeds,
        "server": served,
        "server / bare engine": round(served["tokens/s"] / max(speeds), 4),
    }


@contextlib.contextmanager
def model_folder(model: str, shape: str | None, folder: Path | None) -> Iterator[str]:
    """The model as it was named, or a folder of random weights, deleted at the end."""
    if shape is None:
        yield model
        return
    with tempfile.TemporaryDirectory(dir=folder) as new:
        write_snapshot(Path(new), shape, "safetensors")
        yield new


def random_prompts(model: str, count: int, length: int) -> list[list[int]]:
    """Prompts of random ids; the same in every run."""
    snapshot, source = open_snapshot(find_model(model)), random.Random(0)
    vocab_size = min(snapshot.tokenizer.vocab_size, snapshot.config.vocab_size)
    return [[source.randrange(4, vocab_size) for _ in range(length)] for _ in range(count)]


def bare_engine(
    model: str, device: str | None, dtype: str | None, prompts: list[list[int]], new: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield the speed of the engine with all prompts in one call, after a warm-up, and what it runs on."""
    generator = load_model(model, device=device, dtype=dtype)
    backend, options, counts = generator.backend, generator.options(fixed_length(new)), list[int]()
    backend.generate(prompts, options)

    def run() -> None:
        for _ in range(rounds):
            counts.extend(len(answer.ids) for group in backend.generate(prompts, options) for answer in group)

    seconds = timed(run)
    yield {
        "device": torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else "CPU",
        "dtype": str(backend.dtype),
        "torch": torch.__version__,
        "tokens/s": round(sum(counts) / seconds, 1),
    }


def fixed_length(new: int) -> dict[str, Any]:
    """Options for answers of exactly `new` tokens, of the engine and of a request."""
    return {"num_beams": 1, "do_sample": False, "max_new_tokens": new, "eos_token_id": NO_END}


def translation_tasks() -> list[Task]:
    """Translations, and what the engine answers to each of them alone."""
    generator = load_model("tiny", device="cpu")
    options = generator.options(GREEDY)
    tasks = []
    for language in [language for language in LANGUAGES.values() if language != "English"]:
        for sentence in SENTENCES:
            question = translation_request(sentence, language)
            answer = generator.reply([generator.reader.read(question, options, chat=True)], options)[0].texts[0]
            messages = [{"role": "user", "content": question}]
            tasks.append(Task(CHAT, {"model": "tiny", "messages": messages, **GREEDY}, answer))
    return tasks


@contextlib.contextmanager
def server(model: str, *flags: str) -> Iterator[tuple[str, psutil.Process]]:
    """`polylm serve` in a process of its own: its address and the process."""
    port = free_port()
    command = ["modelscope_polylm", "serve", model, "--port", str(port), *flags]
    with running(command, port) as started:
        yield started


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[tuple[str, psutil.Process]]:
    """`python -m` a server, until it is healthy: its address and the process. Raises RuntimeError if it ends."""
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            while not answers(f"{url}/health"):
                if process.poll() is not None:
                    log.seek(0)
                    text = log.read().decode(errors="replace")
                    raise RuntimeError(f"{command[0]} ended with status {process.returncode}: {text[-8000:]}")
                time.sleep(0.25)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def answers(url: str) -> bool:
    """Whether something answers there."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Memory:
    """Watches the resident memory of a process."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._sizes: list[int] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error):
            while True:
                self._sizes.append(self._process.memory_info().rss)
                time.sleep(0.5)

    def mark(self) -> list[float]:
        """Megabytes since the last call: at its start, after each quarter of the time, and now."""
        sizes, self._sizes = self._sizes, []
        sizes.append(self._process.memory_info().rss)
        return [round(sizes[quarter * (len(sizes) - 1) // 4] / 1e6, 1) for quarter in range(5)]


def seconds_until_free(url: str) -> float:
    """How long rows are still being computed."""
    start = time.perf_counter()
    while gauge(url, "polylm_running_rows"):
        time.sleep(0.005)
    return time.perf_counter() - start


def gauge(url: str, name: str) -> float:
    """A value of /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


async def load(
    url: str, tasks: Sequence[Task], clients: int, *, seconds: float = float("inf"), requests: float = float("inf")
) -> Tally:
    """Ask with several clients at once, for some time or so many requests each; neighbours ask for different things."""
    tally, start = Tally(), time.perf_counter()

    def goes_on(number: int) -> bool:
        return number < requests and time.perf_counter() - start < seconds

    async with client_session(url) as session:
        firsts = [number * len(tasks) // clients for number in range(clients)]
        await asyncio.gather(*(client(session, [*tasks[n:], *tasks[:n]], goes_on, tally) for n in firsts))
    tally.seconds = time.perf_counter() - start
    return tally


def client_session(url: str) -> aiohttp.ClientSession:
    """For any number of requests at once."""
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=300), connector=aiohttp.TCPConnector(limit=0))


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


async def ask(session: aiohttp.ClientSession, task: Task, tally: Tally) -> None:
    """Send one request and note what comes."""
    start, times, text, tokens = time.perf_counter(), list[float](), "", 0
    body = {**task.body, "stream": True, "stream_options": {"include_usage": True}}
    async with session.post(task.path, json=body) as response:
        if response.status == 429:
            tally.busy += 1
            tally.retry_after.add(response.headers.get("Retry-After", "none"))
            return
        if response.status != 200:
            raise ConnectionError(f"{response.status}: {await response.text()}")
        async for event in events(response):
            if "error" in event:
                raise ConnectionError(json.dumps(event))
            added = "".join(text_of(choice) for choice in event["choices"])
            text += added
            times += [time.perf_counter()] if added else []
            tokens += (event.get("usage") or {}).get("completion_tokens", 0)
    if task.expected not in (None, text):
        raise ValueError(f"{text!r} instead of {task.expected!r}")
    tally.right += 1
    tally.tokens += tokens
    tally.first_text += [each - start for each in times[:1]]
    tally.between += [after - before for before, after in itertools.pairwise(times)]
    tally.whole.append(time.perf_counter() - start)


def text_of(choice: Mapping[str, Any]) -> str:
    """What an event adds to an answer, of a chat or of a completion; nothing where it only ends it."""
    return (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; a stream without its end is an error."""
    async for line in response.content:
        if line == b"data: [DONE]\n":
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    raise ConnectionError("The stream has no end.")


async def kill(url: str, task: Task, clients: int) -> None:
    """Ask, and go away as soon as something comes."""

    async def one() -> None:
        async with aiohttp.ClientSession(url) as session, session.post(task.path, json=task.body) as response:
            await response.content.readany()
            response.close()

    await asyncio.gather(*(one() for _ in range(clients)))


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, in milliseconds."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": round(cuts[9] * 1e3, 1), "p95": round(cuts[18] * 1e3, 1), "max": round(max(seconds) * 1e3, 1)}


if __name__ == "__main__":
    main()
