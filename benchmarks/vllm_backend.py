"""`python -m benchmarks.vllm_backend`: backend='vllm' beside vLLM called directly, one after the other.

Each engine of --order is alone on the device, in a process of its own, with the same options and the same random
prompts, fresh in every round: `vllm.LLM.generate`; the backend's `generate`, and its `stream` drained. What counts is
the quotient of the tokens per second (of the medians): each is divided by that of the fastest direct run, and the
direct runs before and after tell how far the device drifts. The shapes have random weights (load_format='dummy', so
nothing is read from disk). On a CPU use --shape tiny. --out is written anew after each figure.

`--tensor-parallel 2` shares each layer between two GPUs: compare its ms/step with those of a run without.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.own_process import run_apart
from benchmarks.vllm_engines import ENGINES
from benchmarks.vllm_rounds import Setting, measured_engine
from modelscope_polylm.backends.placement import choose_device
from modelscope_polylm.cli.bench.workloads import SHAPES

GOAL = 0.97
MEMORY = {"cuda": 0.9, "cpu": 0.1}


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """vLLM's arguments for every engine."""
    kind = choose_device(arguments.device).type
    return {
        "gpu_memory_utilization": arguments.memory or MEMORY[kind],
        "enforce_eager": arguments.eager,
        "tensor_parallel_size": arguments.tensor_parallel,
    }


def measured(order: Sequence[str], setting: Setting) -> Iterator[dict[str, Any]]:
    """All figures so far, each time that there are more of them; prints what is new."""
    facts: dict[str, Any] = {"engines": [], "results": []}
    for place, name in enumerate(order):
        earlier = order[:place].count(name)
        again = f", run {earlier + 1}" if earlier else ""
        messages = run_apart(measured_engine, name, setting)
        started = next(messages)
        facts |= {"device": started.pop("device"), "versions": started.pop("versions")}
        facts["engines"].append({"engine": name + again, **started})
        print(start_line(facts["engines"][-1], max(setting.rows) * (setting.prompt + setting.new)), flush=True)
        yield facts
        for result in messages:
            facts["results"].append({**result, "engine": result["engine"] + again})
            print(speed_line(facts["results"][-1]), flush=True)
            yield facts


def with_shares(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, each with its share of the fastest direct run of its work; None where there was none."""
    fastest: dict[str, float] = {}
    for result in results:
        if result["engine"].startswith("vllm"):
            fastest[result["work"]] = max(result["value"], fastest.get(result["work"], 0.0))
    shares = (result["value"] / fastest[result["work"]] if result["work"] in fastest else None for result in results)
    return [{**result, "share": share} for result, share in zip(results, shares, strict=True)]


def start_line(engine: Mapping[str, Any], needed: int) -> str:
    """What a started engine is, how long its start took, and whether the most rows have room for `needed` tokens."""
    note = "" if engine["cache_tokens"] >= needed else f", too few for all rows at once, which need {needed:,}"
    return (
        f"{engine['engine']}: vLLM imported in {engine['import_seconds']:.1f} s, engine ready "
        f"{engine['start_seconds']:.1f} s later; at most {engine['max_num_seqs']:,} rows and "
        f"{engine['max_num_batched_tokens']:,} tokens a step, {engine['cache_tokens']:,} tokens of KV cache{note}"
    )


def speed_line(result: Mapping[str, Any]) -> str:
    """A line of the table; with the share where it is known."""
    share = "" if result.get("share") is None else f"{result['share']:9.3f}"
    speeds = f"{result['value']:10,.1f} tokens/s {result['ms_per_step']:9.3f} ms/step"
    return f"{result['work']:30} {result['engine']:22} {speeds}{share}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="13b")
    parser.add_argument("--order", type=lambda text: text.split(","), default=["vllm", "polylm", "vllm"])
    parser.add_argument("--rows", type=lambda text: tuple(map(int, text.split(","))), default=(1, 16, 64))
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share each layer")
    parser.add_argument("--memory", type=float, help="share of each GPU's memory; 0.9, on a CPU 0.1")
    parser.add_argument("--eager", action="store_true", help="neither compile nor capture: a quick start")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    if unknown := set(arguments.order) - set(ENGINES):
        parser.error(f"--order names {', '.join(sorted(unknown))}: there are {', '.join(ENGINES)}")
    if arguments.out and not arguments.out.parent.is_dir():
        parser.error(f"the folder {arguments.out.parent} of --out does not exist: create it")
    return arguments


def main() -> None:
    """Run the engines, write what there is after every figure, and print the table."""
    arguments = parsed()
    options = engine_options(arguments)
    work = {name: getattr(arguments, name) for name in ("rows", "prompt", "new", "repeats")}
    setting = Setting(arguments.shape, arguments.device, options, **work)
    known = {"shape": arguments.shape, "gpus": arguments.tensor_parallel, "options": options, "goal": GOAL}
    facts: dict[str, Any] = {}
    try:
        for found in measured(arguments.order, setting):
            facts = {**known, **found, "results": with_shares(found["results"])}
            if arguments.out:
                arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except RuntimeError as error:
        sys.exit(str(error))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"\n{arguments.shape} on {arguments.tensor_parallel} x {facts['device']}, {versions}")
    print(f"last column: share of the fastest direct run; the goal is {GOAL}")
    for result in sorted(facts["results"], key=lambda result: result["rows"]):
        print(speed_line(result))


if __name__ == "__main__":
    main()
