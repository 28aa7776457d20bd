"""The server under load, for `benchmarks.serving`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from benchmarks.serving_clients import Task, kill, load
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import resolve
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request

SENTENCES = (SENTENCE, "Rome is the capital of Italy.", "Tokyo is the capital of Japan.")
GREEDY = {"num_beams": 1}
LONG = {"model": "tiny", "prompt": "a", "num_beams": 1, "min_new_tokens": 480, "max_tokens": 480, "stream": True}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def translation_tasks() -> list[Task]:
    """Translations, and what the engine answers to each of them alone."""
    generator = TextGenerator.load(resolve("tiny"), device="cpu")
    options = generator.options(GREEDY)
    tasks = []
    for language in [language for language in LANGUAGES.values() if language != "English"]:
        for sentence in SENTENCES:
            question = translation_request(sentence, language)
            answer = generator.reply([generator.reader.read(question, options, chat=True)], options)[0].texts[0]
            messages = [{"role": "user", "content": question}]
            tasks.append(Task(CHAT, {"model": "tiny", "messages": messages, **GREEDY}, answer))
    return tasks


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(*flags: str) -> Iterator[tuple[str, psutil.Process]]:
    """`polylm serve tiny` in a process of its own: its address and the process."""
    port = free_port()
    command = [sys.executable, "-m", "modelscope_polylm", "serve", "tiny", "--port", str(port), *flags]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(0.25)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


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
        """Megabytes since the last call: at its begin, after each quarter of the time, and now."""
        sizes, self._sizes = self._sizes, []
        sizes.append(self._process.memory_info().rss)
        return [round(sizes[quarter * (len(sizes) - 1) // 4] / 1e6, 1) for quarter in range(5)]


def gauge(url: str, name: str) -> float:
    """A value of /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


def seconds_until_free(url: str) -> float:
    """How long rows are still being computed."""
    start = time.perf_counter()
    while gauge(url, "polylm_running_rows") or gauge(url, "polylm_running_batches"):
        time.sleep(0.005)
    return time.perf_counter() - start


def measure_load(clients: int, seconds: float) -> dict[str, Any]:
    """All phases, one after the other."""
    tasks = translation_tasks()
    flags = ("--max-rows", str(clients), "--max-queue", str(clients))
    figures: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    figures |= {"torch": torch.__version__, "flags": " ".join(flags)}
    with server(*flags) as (url, process):
        asyncio.run(load(url, tasks, 1, requests=len(tasks)))  # warm
        memory = Memory(process)
        phases = {
            "one client": (1, {"requests": 100}),
            f"{clients} clients": (clients, {"seconds": seconds}),
            f"{2 * clients} clients": (2 * clients, {"seconds": seconds}),
        }
        for name, (count, limit) in phases.items():
            figures[name] = asyncio.run(load(url, tasks, count, **limit)).summary() | {"server MB": memory.mark()}
        asyncio.run(kill(url, Task(COMPLETIONS, LONG), 16))
        figures["16 killed clients"] = {"free after ms": round(seconds_until_free(url) * 1e3, 1)}
        figures["one client again"] = asyncio.run(load(url, tasks, 1, requests=100)).summary()
        figures["one client again"]["server MB"] = memory.mark()
    return figures
