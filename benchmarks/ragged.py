"""`python -m benchmarks.ragged --shape 13b`: requests of different lengths, as users send them, ours and vLLM's time.

All requests are there at once; prompts and answers have lognormal lengths, of which an engine knows nothing beforehand
except the limit of each answer. Each engine is alone on the device, in a process of its own, with random weights, and
gets the same lengths with fresh random prompts in every round. tokens/s are the new tokens of all answers, divided by
the wall time until the last one is complete. With beams only this engine is measured: vLLM's beam search takes one
length for all prompts. So are prompts with a common beginning: each comes when the one before is complete, and its time
to the first token is compared with that of the first one, which is computed in whole.
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
from modelscope_polylm.cli.bench.engines import PolyLMEngine, VllmEngine, fixed_length
from modelscope_polylm.cli.bench.run import ENGINES as INSTALLED
from modelscope_polylm.cli.bench.run import timed
from modelscope_polylm.cli.bench.workloads import BEAMS, GREEDY, SHAPES, random_snapshot
from modelscope_polylm.network.quantization import QUANTIZATIONS

SEED = 3
PROMPT_LENGTHS = {"median": 80, "shortest": 8, "longest": 700}
ANSWER_LENGTHS = {"median": 120, "shortest": 8, "longest": 768}
SIGMA = 0.8
"""Deviation of the logarithm of the lengths."""
COMMON, OWN = 1500, 40
"""Tokens that all prompts of the third work begin with, and tokens of their own."""


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
        requests, beam_requests, prefix_requests: of greedy search, of beam search and with a common beginning; 0 leaves
            a work out.
        at_once: most of them that this engine runs together; None leaves it to the engine.
        repeats: timed rounds after a warm-up round.
        quantization: of this engine's weights; None keeps them as they are.
    """

    shape: str
    device: str
    dtype: str
    requests: int
    beam_requests: int
    prefix_requests: int
    at_once: int | None
    repeats: int
    quantization: str | None


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
    parser.add_argument("--beam-requests", type=int, default=64, help="requests that are searched with 4 beams")
    parser.add_argument("--prefix-requests", type=int, default=16, help="requests with a common beginning")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="of this engine's weights")
    parser.add_argument("--at-once", type=int, help="most requests that this engine runs together")
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
    snapshot, target = random_snapshot(setting.shape), torch.device(setting.device)
    own = {"quantization": setting.quantization} if name == "polylm" else {}
    engine = ENGINES[name][0](snapshot, target, getattr(torch, setting.dtype), **own)
    device = torch.cuda.get_device_name(target) if target.type == "cuda" else "CPU"
    facts = {"engine": engine.name, "device": device}
    works = [search_rounds(name, engine, setting, "greedy", GREEDY, setting.requests)]
    if name == "polylm":
        works.append(search_rounds(name, engine, setting, "4 beams", BEAMS, setting.beam_requests))
        works.append(prefix_rounds(engine, setting))
    for work in works:
        for figures in work:
            yield facts | figures


def search_rounds(
    name: str, engine: Any, setting: Setting, search: str, options: Mapping[str, Any], count: int
) -> Iterator[dict[str, Any]]:
    """Speed of a search in each round, after a warm-up round."""
    run, vocab_size = ENGINES[name][1], random_snapshot(setting.shape).config.vocab_size
    for number in range(-1, setting.repeats if count else -1):
        requests, tokens = fresh_requests(count, number, vocab_size), list[int]()
        seconds = timed(lambda: tokens.extend(run(engine, requests, options, setting.at_once)))  # noqa: B023
        if number >= 0:
            figures = {"unit": "tokens/s", "value": sum(tokens) / seconds, "seconds": seconds, "tokens": sum(tokens)}
            yield {"work": f"{search}, {count} requests", **figures}


def prefix_rounds(engine: PolyLMEngine, setting: Setting) -> Iterator[dict[str, Any]]:
    """Times to the first token of prompts that begin alike, in each round with another beginning."""
    vocab_size, count = engine.backend.config.vocab_size, setting.prefix_requests
    for number in range(-1, setting.repeats if count else -1):
        source = random.Random(f"{SEED} prefix {number}")
        common, *own = ([source.randrange(4, vocab_size) for _ in range(size)] for size in (COMMON, *[OWN] * count))
        prompts = [Request(common + each, 1) for each in own]
        first, *others = (timed(lambda: run_ours(engine, [prompt], GREEDY, None)) for prompt in prompts)  # noqa: B023
        if number >= 0:
            seconds = statistics.median(others)
            times = {"unit": "of the first one's time", "first_seconds": first, "seconds": seconds}
            yield {"work": f"prefix, {count} requests", "value": seconds / first, "tokens": count, **times}


def run_ours(
    engine: PolyLMEngine, requests: Sequence[Request], options: Mapping[str, Any], at_once: int | None
) -> list[int]:
    """Answer all requests; the engine fills rows as they fall free. Returns the number of new tokens of each."""
    backend = engine.backend
    limits = [fixed_length(request.new, **options) for request in requests]
    checked = backend.requests([request.prompt for request in requests], limits)
    return [len(group[0].ids) for group in backend.submit(checked, partial=False, at_once=at_once).completions()]


def run_vllm(
    engine: VllmEngine, requests: Sequence[Request], options: Mapping[str, Any], at_once: int | None
) -> list[int]:
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
    head = f"{result['work']:24} {result['engine']:8}"
    if "first_seconds" in result:
        first, others = (result[name] * 1000 for name in ("first_seconds", "seconds"))
        return f"{head} {first:.1f} ms, the others {others:.1f} ms: {result['value']:.2f} on {result['device']}"
    return (
        f"{head} {result['value']:10,.1f} tokens/s   {result['tokens']:,} tokens in {result['seconds']:.2f} s "
        f"on {result['device']}"
    )


if __name__ == "__main__":
    main()
