"""`python -m benchmarks.kernel_tuning --rows 1,4,16,64`: block shapes chosen by the time of a whole step.

A kernel that is fastest alone need not be so between others: its first loads overlap with the kernel before it. So one
operation after the other tries its candidates inside a captured step of all layers, and keeps the best.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel_candidates import step_candidates
from benchmarks.kernel_cases import attention_arguments
from benchmarks.kernel_chain import Chain, Rows, run_step
from benchmarks.kernel_setting import SHAPES, Setting, Shape, group_of
from benchmarks.kernel_timing import Run
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.linear import add_product_, linear
from modelscope_polylm.network.kernels.lm_head import output_best

PROCESSES = 14


def compile_ahead(shape: Shape, name: str, rows: int, config: Any) -> None:
    """Leave a compiled kernel in Triton's cache on disk; runs it on small arguments that compile to the same."""
    setting = Setting(shape, torch.device("cuda"), torch.bfloat16, small=True)
    try:
        if name == "attention":
            decode_attention(*attention_arguments(setting, rows, group_of(rows), 8, 16, shape.heads), config)
        elif name == "output":
            x, embedding = setting.random(rows, shape.width), setting.random(4096, shape.width)
            output_best(x, embedding, 1 if rows == 1 else 8, 4096, config)
        else:
            x, weight = setting.random(rows, shape.product(name)[1]), setting.random(1024, shape.product(name)[1])
            if name.endswith("c_proj"):
                add_product_(setting.random(rows, 1024, dtype=torch.float32), x, weight, config)
            else:
                linear(x, weight, weight[:, 0].clone(), name == "c_fc", config)
        torch.cuda.synchronize()
    except Exception as error:
        print(f"cannot compile {name} {config}: {str(error)[:100] or error!r}")


def tune(run: Run, chain: Chain, rows: int, context: int) -> dict[str, Any]:
    """The best configuration of each operation for a step of `rows` rows, found one operation after the other."""
    shape, group, top = run.setting.shape, group_of(rows), 1 if rows == 1 else 8
    state = Rows.random(run.setting, rows, group, context // 2, context)
    best: dict[str, Any] = {}
    start = run.seconds([partial(run_step, chain, state, top)])
    print(f"{rows} rows: default configurations {start * 1e3:.3f} ms", flush=True)
    for name, configs in step_candidates(shape, rows).items():
        times = []
        for config in configs:
            step = partial(run_step, chain, state, top, {**best, name: config})
            seconds = run.attempt(f"{name} {config}", lambda step=step: run.seconds([step]))
            if seconds is not None:
                times.append((seconds, config))
        times.sort(key=lambda pair: pair[0])
        best[name] = times[0][1]
        for seconds, config in times[:4]:
            print(f"  {rows:2} rows {name:12} {seconds * 1e3:.3f} ms {config}", flush=True)
    return best


def main() -> None:
    """Compile ahead in several processes, then tune each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--rows", default="1,4,16,64")
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shape, rows_list = SHAPES[arguments.shape], [int(rows) for rows in arguments.rows.split(",")]
    work = [
        (shape, name, rows, config)
        for rows in rows_list
        for name, configs in step_candidates(shape, rows).items()
        for config in configs
    ]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(compile_ahead, work, chunksize=8)
    run = Run(Setting(shape, torch.device("cuda"), torch.bfloat16), "auto")
    chain = Chain.random(run.setting)
    found = {rows: tune(run, chain, rows, arguments.context) for rows in rows_list}
    if arguments.out is not None:
        plain = {rows: {name: asdict(config) for name, config in best.items()} for rows, best in found.items()}
        arguments.out.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
