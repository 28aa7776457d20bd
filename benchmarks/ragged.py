"""`python -m benchmarks.ragged --shape 13b`: requests of different lengths, as users send them, ours and vLLM's time.

All requests are there at once; prompts and answers have lognormal lengths, of which an engine knows nothing beforehand
except the limit of each answer. Each engine is alone on the device, in a process of its own, with random weights, and
gets the same lengths with fresh random prompts in every round. tokens/s are the new tokens of all answers, divided by
the wall time until the last one is complete. With beams only this engine is measured: vLLM's beam search takes one
length for all prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.fresh_process import in_fresh_process
from modelscope_polylm.backends.placement import choose_device, choose_dtype
from modelscope_polylm.cli.bench.engines import PolyLMEngine, fixed_length
from modelscope_polylm.cli.bench.other_engines import VllmEngine
from modelscope_polylm.cli.bench.run import ENGINES as INSTALLED
from modelscope_polylm.cli.bench.run import timed
from modelscope_polylm.cli.bench.workloads import BEAMS, GREEDY, SHAPES, random_snapshot

SEED = 3
PROMPT_LENGTHS = {"median": 80, "shortest": 8, "longest": 700}
ANSWER_LENGTHS = {"median": 120, "shortest": 8, "longest": 768}
SIGMA = 0.8
"""Deviation of the logarithm of the lengths."""


@dataclass(frozen=True)
class Request:
    """Token ids of a prompt, and how many new tokens its answer has."""

    prompt: list[int]
    new: int


@dataclass(frozen=True)
class Setting:
    """The same for every engine.

    Attributes:
        shape, device, dtype: the network, where it is and its precision.
        requests, rows: of greedy search: requests in all, and rows that run at once where batches are static.
        beam_requests, beam_rows: the same of beam search; no requests leave it out.
        repeats: timed rounds after a warm-up round.
    """

    shape: str
    device: str
    dtype: str
    requests: int
    rows: int
    beam_requests: int
    beam_rows: int
    repeats: int


def main() -> None:
    """Run the engines one after the other; print and write what is known after each round."""
    arguments = vars(parsed())
    engines, out = arguments.pop("engines"), arguments.pop("out")
    target = choose_device(arguments["device"])
    arguments |= {"device": str(target), "dtype": str(choose_dtype(arguments["dtype"], target)).split(".")[-1]}
    setting = Setting(**arguments)
    facts: dict[str, Any] = {**asdict(setting), **summary(lengths(setting.requests)), "results": []}
    print(json.dumps(facts | {"results": None}), flush=True)
    try:
        for name in engines:
            for result in in_fresh_process(measured, name, setting):
                facts["results"].append(result)
                print(line(result), flush=True)
                if out:
                    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except RuntimeError as error:
        sys.exit(str(error))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [name for name in ENGINES if name in INSTALLED]
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--engines", nargs="+", choices=here, default=here)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rows", type=int, default=64, help="rows at once, of this engine")
    parser.add_argument("--beam-requests", type=int, default=64, help="requests that are searched with 4 beams")
    parser.add_argument("--beam-rows", type=int, default=16, help="prompts at once with beams, of this engine")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    return parser.parse_args()


def lengths(count: int) -> list[tuple[int, int]]:
    """Tokens of prompt and answer of each request; the same in every run."""
    source = random.Random(SEED)

    def drawn(median: int, shortest: int, longest: int) -> int:
        return max(shortest, min(longest, int(source.lognormvariate(math.log(median), SIGMA))))

    return [(drawn(**PROMPT_LENGTHS), drawn(**ANSWER_LENGTHS)) for _ in range(count)]


def summary(sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Mean lengths of prompts and answers, and the longest answer."""
    prompts, answers = zip(*sizes, strict=True)
    return {
        "prompt_mean": statistics.mean(prompts),
        "answer_mean": statistics.mean(answers),
        "answer_max": max(answers),
    }


def fresh_requests(count: int, round_number: int, vocab_size: int) -> list[Request]:
    """The requests of a round, the same in every process."""
    source = random.Random(f"{SEED} {round_number}")
    return [Request([source.randrange(4, vocab_size) for _ in range(prompt)], new) for prompt, new in lengths(count)]


def measured(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """Start an engine of ENGINES and yield the figures of each round."""
    make, run = ENGINES[name]
    snapshot, target = random_snapshot(setting.shape), torch.device(setting.device)
    engine = make(snapshot, target, getattr(torch, setting.dtype))
    device = torch.cuda.get_device_name(target) if target.type == "cuda" else "CPU"
    works = [("greedy", GREEDY, setting.requests, setting.rows)]
    if setting.beam_requests and name == "polylm":
        works.append(("4 beams", BEAMS, setting.beam_requests, setting.beam_rows))
    for search, options, count, rows in works:
        run(engine, fresh_requests(rows, -1, snapshot.config.vocab_size), options, rows)
        for number in range(setting.repeats):
            requests, tokens = fresh_requests(count, number, snapshot.config.vocab_size), list[int]()
            seconds = timed(lambda: tokens.extend(run(engine, requests, options, rows)))  # noqa: B023
            speed = {"unit": "tokens/s", "value": sum(tokens) / seconds}
            work = f"{search}, {count} requests"
            yield {"work": work, "engine": name, "device": device, **speed, "seconds": seconds, "tokens": sum(tokens)}


def run_ours(engine: PolyLMEngine, requests: Sequence[Request], options: Mapping[str, Any], rows: int) -> list[int]:
    """Answer all requests, `rows` at once in order of arrival. Returns the number of new tokens of each.

    A batch runs until its longest answer is complete.
    """
    counts = []
    for first in range(0, len(requests), rows):
        batch = requests[first : first + rows]
        longest = max(request.new for request in batch)
        answers = engine.backend.generate([request.prompt for request in batch], fixed_length(longest, **options))
        counts += [min(request.new, len(group[0].ids)) for request, group in zip(batch, answers, strict=True)]
    return counts


def run_vllm(engine: VllmEngine, requests: Sequence[Request], options: Mapping[str, Any], rows: int) -> list[int]:
    """Answer all requests, as many at once as vLLM likes. Returns the number of new tokens of each."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": request.prompt} for request in requests]
    parameters = [
        SamplingParams(temperature=0.0, max_tokens=request.new, ignore_eos=True, detokenize=False)
        for request in requests
    ]
    outputs = engine.llm.generate(prompts, parameters, use_tqdm=False)
    return [len(output.outputs[0].token_ids) for output in outputs]


ENGINES: dict[str, tuple[Callable[..., Any], Callable[..., list[int]]]] = {
    "polylm": (PolyLMEngine, run_ours),
    "vllm": (VllmEngine, run_vllm),
}


def line(result: Mapping[str, Any]) -> str:
    """A line of the table."""
    return (
        f"{result['work']:24} {result['engine']:8} {result['value']:10,.1f} tokens/s   {result['tokens']:,} tokens in "
        f"{result['seconds']:.2f} s on {result['device']}"
    )


if __name__ == "__main__":
    main()
