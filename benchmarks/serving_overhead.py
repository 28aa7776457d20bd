"""The server beside the bare engine, for `benchmarks.serving`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.serving_clients import Task, load
from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.backends.placement import choose_device, choose_dtype
from modelscope_polylm.cli.bench.workloads import random_decoder, shape_config
from modelscope_polylm.generation.engine import Engine
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import resolve
from modelscope_polylm.serve.server import Limits, NativeServer
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.terminal.models import limit_threads
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

NO_END = 3
"""An end token that is all but never chosen: every answer has all its tokens."""


class RepeatedTokenizer(PolyLMTokenizer):
    """tiny's pieces over and over, so that every id of a larger vocabulary is a text."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(resolve("tiny") / "tokenizer.model")
        self._pieces, self.vocab_size = self.vocab_size, vocab_size
        self.processor = _Repeated(self.processor, self._pieces)

    def byte_value(self, token: int) -> int | None:
        """As tiny's piece."""
        return super().byte_value(token % self._pieces)


class _Repeated:
    def __init__(self, processor: Any, pieces: int) -> None:
        self._processor, self._pieces = processor, pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode([token % self._pieces for token in ids]))

    def id_to_piece(self, token: int) -> str:
        return str(self._processor.id_to_piece(token % self._pieces))


def random_generator(shape: str, device: str | None, dtype: str | None) -> TextGenerator:
    """A generator of a published shape with random weights."""
    config, target = shape_config(shape), choose_device(device)
    precision = choose_dtype(dtype, target)
    tokenizer = RepeatedTokenizer(config.vocab_size)
    snapshot = dataclasses.replace(open_snapshot(resolve("tiny")), config=config, tokenizer=tokenizer)
    backend = NativeBackend.__new__(NativeBackend)  # its constructor reads a snapshot's weights
    backend.config, backend.device, backend.dtype = config, target, precision
    backend.engine = Engine(random_decoder(config, target, precision), tokenizer)
    return TextGenerator(snapshot, backend)


def bare_tokens_per_second(generator: TextGenerator, prompts: Sequence[Sequence[int]], new: int, rounds: int) -> float:
    """The engine alone with all prompts in one call, behind a warm-up."""
    options = generator.options(_options(new))
    generator.backend.generate(prompts, options)
    start = time.perf_counter()
    tokens = 0
    for _ in range(rounds):
        answers = generator.backend.generate(prompts, options)
        tokens += sum(len(answer.ids) for group in answers for answer in group)
    return tokens / (time.perf_counter() - start)


def _options(new: int) -> dict[str, Any]:
    return {"num_beams": 1, "do_sample": False, "max_new_tokens": new, "eos_token_id": NO_END}


def served(generator: TextGenerator, prompts: Sequence[Sequence[int]], new: int, rounds: int) -> dict[str, Any]:
    """The server, asked by a process of clients; each sends one request after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    native = NativeServer(generator, ("model",), limits=Limits(rows=len(prompts)))
    server = native.server("127.0.0.1", 0)
    running = threading.Thread(target=server.run, args=([listener],))
    running.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    work = json.dumps({"url": url, "prompts": prompts, "new": new, "rounds": rounds})
    command = [sys.executable, "-m", "benchmarks.serving_overhead"]
    output = subprocess.run(command, input=work, stdout=subprocess.PIPE, text=True, check=True).stdout
    server.should_exit = True
    running.join()
    native.scheduler.stop()
    read = native.metrics.registry.get_sample_value
    rows = (read("polylm_batch_rows_sum") or 0) / (read("polylm_batch_rows_count") or 1)
    return {**json.loads(output), "rows of a batch": round(rows, 2)}


def clients_of(url: str, prompts: Sequence[Sequence[int]], new: int, rounds: int) -> dict[str, Any]:
    """What the clients see, behind a warm-up."""
    tasks = [Task("/v1/completions", {"model": "model", "prompt": prompt, **_options(new)}) for prompt in prompts]
    asyncio.run(load(url, tasks, len(tasks), requests=1))
    return asyncio.run(load(url, tasks, len(tasks), requests=rounds)).summary()


def chosen_generator(model: str, shape: str | None, device: str | None, dtype: str | None) -> TextGenerator:
    """A model, or a shape with random weights."""
    if shape is not None:
        generator = random_generator(shape, device, dtype)
    else:
        generator = TextGenerator.load(resolve(model), device=device, dtype=dtype)
    limit_threads(generator)
    return generator


def measure_overhead(clients: int, prompt: int, new: int, rounds: int, **chosen: str | None) -> dict[str, Any]:
    """Both, in turn, and their quotient."""
    generator = chosen_generator(**chosen)
    numbers, size = random.Random(0), generator.snapshot.tokenizer.vocab_size
    prompts = [[numbers.randrange(4, size) for _ in range(prompt)] for _ in range(clients)]
    bare = bare_tokens_per_second(generator, prompts, new, rounds)
    server = served(generator, prompts, new, rounds)
    again = bare_tokens_per_second(generator, prompts, new, rounds)
    target = generator.backend.device
    return {
        "model": chosen["shape"] or chosen["model"],
        "device": torch.cuda.get_device_name(target) if target.type == "cuda" else "CPU",
        "dtype": str(generator.backend.dtype),
        "torch": torch.__version__,
        "work": f"{clients} at once, {prompt} + {new} tokens, {rounds} rounds",
        "bare engine tokens/s": [round(bare, 1), round(again, 1)],
        "server": server,
        "server / bare engine": round(server["tokens/s"] / max(bare, again), 4),
    }


if __name__ == "__main__":  # the process of the clients
    print(json.dumps(clients_of(**json.load(sys.stdin))))
