"""Checks and times the kernels of one decode step, and of prefill.

    python -m benchmarks.kernels [--rows 1,4,16,64] [--shape 13b|1.7b] [--context 192] [--quick] [--sweep] [--out DIR]
    python -m benchmarks.kernels --prefill [--sweep]

Times are medians of replayed graphs over memory far larger than the L2 cache; the number behind TB/s is the fraction of
the read bandwidth that a large matrix-vector product reaches in the same run. `--interpret` runs everything on tiny
shapes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel_cases import CASES, Case
from benchmarks.kernel_chain import Chain
from benchmarks.kernel_chain_timing import time_chain
from benchmarks.kernel_checks import run_checks
from benchmarks.kernel_setting import PRODUCTS, SHAPES, Setting, group_of
from benchmarks.kernel_timing import Run
from modelscope_polylm.network.kernels.configs import VectorConfig
from modelscope_polylm.network.kernels.dispatch import kernel_settings, use_interpreter

PROCESSES = 14
Spec = tuple[Any, ...]


def measure_bandwidth(run: Run) -> None:
    """The limit of the run: the fastest of the library's and our product of one row with a 2.6 GB matrix."""
    case = CASES["output"](run.setting, 1, 1)
    vocab, width = run.setting.shape.vocab, run.setting.shape.width
    matrix, vector = run.setting.random(vocab, width), run.setting.random(width)
    library = run.measure("limit", "torch.mv", [lambda: torch.mv(matrix, vector)] * 3, 2 * vocab * width)
    words = matrix.view(torch.int32)
    total = run.measure("limit", "sum of the same bytes", [lambda: words.sum(dtype=torch.int32)] * 3, 2 * vocab * width)
    ours = min(
        run.measure("limit", "output layer", case.calls(config), case.size, config)
        for config in (None, VectorConfig(8, 1024, 4))
    )
    run.bandwidth = 2 * vocab * width / min(library, total, ours)
    print(f"limit    {run.bandwidth / 1e12:.3f} TB/s", flush=True)


def specs_of(rows: int, context: int) -> list[Spec]:
    """Cases for one number of rows."""
    group = group_of(rows)
    top = 1 if rows == 1 else 8
    specs: list[Spec] = [("product", name, rows) for name in PRODUCTS]
    specs += [("norm", rows), ("attention", rows, group, context // 2, context), ("output", rows, top)]
    return specs


def extra_specs(rows: int) -> list[Spec]:
    """Cases timed with their default configuration only."""
    specs: list[Spec] = [("logits", rows)]
    if rows == 4:
        specs += [("attention", 4, 4, 1800, 1864), ("attention", 64, 4, 128, 192)]
    return specs


def prefill_specs(interpret: bool) -> list[Spec]:
    """Cases of prefill, and of the choice among beams, which both do without a number of rows."""
    prompts, beams = ((2, 20),), ((2, 3),)
    if not interpret:
        prompts, beams = ((1, 300), (1, 1920), (4, 2000), (64, 128)), ((1, 2), (1, 4), (16, 4), (1, 8))
    norms = [("norm", count * length) for count, length in prompts]
    return [*(("prefill attention", *each) for each in prompts), *norms, *(("beams", *each) for each in beams)]


def key_of(spec: Spec) -> str:
    """Name under which the chain looks for the best configuration."""
    return str(spec[1] if spec[0] == "product" else spec[0])


def time_case(run: Run, spec: Spec, sweep: bool) -> None:
    case: Case | None = run.attempt(f"arguments of {spec}", lambda: CASES[spec[0]](run.setting, *spec[1:]))
    if case is None:
        return
    with kernel_settings("torch"):
        run.measure("torch", case.label, case.calls(None), case.size)
    with kernel_settings(run.mode, overlap=False):
        run.measure("serial", case.label, case.calls(None), case.size)
    default = run.measure("overlap", case.label, case.calls(None), case.size)
    if not sweep or not case.configs:
        return
    tried = [
        (run.measure("sweep", case.label, case.calls(config), case.size, config), config) for config in case.configs
    ]
    seconds, config = min(tried, key=lambda pair: pair[0])
    print(f"best     {case.label:44s} {seconds * 1e6:9.2f} us, default {default * 1e6:.2f} us: {config}", flush=True)
    if seconds < default:
        run.best[f"{key_of(spec)} {spec[2] if spec[0] == 'product' else spec[1]}"] = config


def compile_case(setting: Setting, specs: Sequence[Spec]) -> int:
    """Compiles every configuration of some cases into Triton's cache on disk; runs in a process of its own."""
    compiled = 0
    for spec in specs:
        case = CASES[spec[0]](setting, *spec[1:-1])
        try:
            case.calls(spec[-1])[0]()
            compiled += 1
        except Exception:  # the run itself reports what fails
            continue
    torch.cuda.synchronize()
    return compiled


def compile_ahead(setting: Setting, specs: Sequence[Spec], sweep: bool) -> None:
    """Compiles in parallel what `time_case` will run, on small arguments that compile to the same kernels."""
    start, small = time.perf_counter(), replace(setting, small=True)
    jobs: list[Spec] = []
    for spec in specs:
        configs = CASES[spec[0]](small, *spec[1:]).configs if sweep else ()
        jobs += [(*spec, config) for config in (None, *configs)]
    shares = [jobs[i::PROCESSES] for i in range(PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        done = pool.starmap_async(compile_case, [(small, share) for share in shares]).get(timeout=240)
    print(f"compiled {sum(done)} of {len(jobs)} kernels in {time.perf_counter() - start:.1f} s", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,4,16,64", help="numbers of rows, separated by commas")
    parser.add_argument("--shape", default="13b", choices=sorted(SHAPES))
    parser.add_argument("--context", type=int, default=192, help="cached tokens of every row")
    parser.add_argument("--quick", action="store_true", help="no checks and no single operations: the chain alone")
    parser.add_argument("--prefill", action="store_true", help="only the kernels of prefill and of beam search")
    parser.add_argument("--sweep", action="store_true", help="try many configurations")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--interpret", action="store_true", help="tiny shapes on a CPU, under Triton's interpreter")
    parser.add_argument("--out", type=Path, help="folder for kernels.json")
    return parser.parse_args()


def time_prefill(run: Run, options: argparse.Namespace) -> None:
    """The kernels of prefill and the choice among beams; the tests check them."""
    run.attempt("bandwidth", lambda: measure_bandwidth(run))
    for spec in prefill_specs(options.interpret):
        time_case(run, spec, options.sweep)


def time_step(run: Run, options: argparse.Namespace) -> None:
    """The kernels of a decode step, alone and in chains of layers."""
    rows = [int(number) for number in options.rows.split(",")]
    context = 20 if options.interpret else options.context
    specs = [spec for count in rows for spec in specs_of(count, context)]
    extras = [spec for count in rows for spec in extra_specs(count)] if not options.quick else []
    if not options.interpret:
        run.attempt("parallel compilation", lambda: compile_ahead(run.setting, specs, options.sweep))
    if not options.quick and not options.skip_checks:
        run.attempt("checks", lambda: run_checks(run))
    run.attempt("bandwidth", lambda: measure_bandwidth(run))
    for spec in specs if not options.quick or options.sweep else []:
        time_case(run, spec, options.sweep)
    for spec in extras if not options.interpret else []:
        time_case(run, spec, False)
    chain = Chain.random(run.setting)
    for count in rows:
        run.attempt(f"chain {count}", partial(time_chain, run, chain, count, context, options.sweep))


def write_results(run: Run, options: argparse.Namespace) -> None:
    """Write kernels.json to the folder of --out."""
    options.out.mkdir(parents=True, exist_ok=True)
    document = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "limit TB/s": run.bandwidth / 1e12,
        "best": {key: str(config) for key, config in run.best.items()},
        "results": run.results,
    }
    (options.out / "kernels.json").write_text(json.dumps(document, indent=1))


def main() -> None:
    options, start = parse_arguments(), time.perf_counter()
    if options.interpret and not use_interpreter():
        raise SystemExit("Triton's interpreter is not available: install triton and start a fresh process.")
    device = torch.device("cpu" if options.interpret else "cuda:0")
    shape = SHAPES["tiny" if options.interpret else options.shape]
    setting = Setting(shape, device, torch.float16 if options.interpret else torch.bfloat16)
    run = Run(setting, "triton" if options.interpret else "auto")
    if not options.interpret:
        print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    with torch.inference_mode(), kernel_settings(run.mode):
        (time_prefill if options.prefill else time_step)(run, options)
    if options.out:
        write_results(run, options)
    print(f"finished in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
