"""Runs the benchmark's table and prints it while it grows."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from modelscope_polylm.cli.bench.engines import Contender, Ours, Transformers, release_memory
from modelscope_polylm.cli.bench.measure import Measurement, measure, read_bandwidth
from modelscope_polylm.cli.bench.other_engines import CTranslate2, Vllm, ctranslate2_installed, vllm_installed
from modelscope_polylm.cli.bench.report import Report, check_plot, draw
from modelscope_polylm.cli.bench.workloads import CONTEXT_UNIT, ROWS_UNIT, WORKS, Work, shape_config
from modelscope_polylm.errors import OptionError
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.snapshot import Snapshot

ENGINES: dict[str, Callable[[PolyLMConfig, torch.device, torch.dtype, Snapshot | None], Contender]] = {
    "polylm": Ours,
    "transformers": functools.partial(Transformers, static=False),
    "transformers-static": functools.partial(Transformers, static=True),
}
if vllm_installed():
    ENGINES["vllm"] = Vllm
if ctranslate2_installed():
    ENGINES["ctranslate2"] = functools.partial(CTranslate2, quantization="float32")
    ENGINES["ctranslate2-int8"] = functools.partial(CTranslate2, quantization="int8")


def bench(
    shape: str = "13b",
    device: str = "cuda",
    dtype: str = "bfloat16",
    engines: Sequence[str] = tuple(ENGINES),
    works: Sequence[Work] = WORKS,
    repeats: int = 3,
    out: Path | None = None,
    plot: Path | None = None,
    snapshot: Snapshot | None = None,
) -> Report:
    """Measure every engine on every piece of work; a piece that fails is reported and the rest goes on.

    Args:
        shape: one of `shapes.SHAPES`, with random weights; of a snapshot, its name.
        device, dtype: where and how the weights are kept.
        engines: keys of `ENGINES`.
        works: the rows of the table.
        repeats: timed calls behind the warm-up call.
        out: a JSON file for all figures, written anew after each of them.
        plot: a picture of the points of the two diagrams, drawn at the end.
        snapshot: has the sizes and weights; those of `shape` if None.

    Raises:
        OptionError: if the picture cannot be written there, no piece of work is a point of a diagram, or none fits
            into the positions of the network.
        SnapshotError: if an engine cannot take the snapshot.
        DependencyError: if it needs matplotlib, which is missing.
    """
    config, target = snapshot.config if snapshot else shape_config(shape), torch.device(device)
    works = _fitting(works, config.max_positions)
    if plot is not None:
        check_plot(plot)
        if not any(work.unit in (CONTEXT_UNIT, ROWS_UNIT) for work in works):
            raise OptionError("None of the chosen works is a point of a plot: choose others, or leave the plot.")
    limit_ms = config.parameters * getattr(torch, dtype).itemsize / read_bandwidth(target) * 1e3
    report = Report(shape, dtype, _device_name(target), torch.__version__, limit_ms)
    print(f"{shape} {dtype} on {report.device}, torch {report.torch}: weights are read in {limit_ms:.2f} ms")
    for name in engines:
        release_memory()
        contender = ENGINES[name](config, target, getattr(torch, dtype), snapshot)
        for measurement in _measurements(contender, works, repeats):
            report.results.append(measurement)
            print(_line(measurement, limit_ms), flush=True)
            if out is not None:
                out.write_text(report.json(), encoding="utf-8")
        del contender
    if plot is not None:
        draw(report, plot)
    return report


def _fitting(works: Sequence[Work], positions: int) -> list[Work]:
    fitting = [work for work in works if work.prompt + work.new <= positions]
    for work in works:
        if work not in fitting:
            print(f"{work.name:30} left out: it needs more than {positions} positions", file=sys.stderr)
    if not fitting:
        raise OptionError(f"None of the chosen works fits into the network's {positions} positions: choose others.")
    return fitting


def _measurements(contender: Contender, works: Sequence[Work], repeats: int) -> Iterator[Measurement]:
    for work in works:
        try:
            yield measure(contender, work, repeats)
        except (RuntimeError, ValueError) as error:
            print(f"{work.name:30} {contender.name:20} failed: {type(error).__name__}: {error}", file=sys.stderr)


def _line(measurement: Measurement, limit_ms: float) -> str:
    fraction = (
        f"{limit_ms / measurement.value:6.1%} of the limit" if measurement.unit in ("ms/step", CONTEXT_UNIT) else ""
    )
    return (
        f"{measurement.work:30} {measurement.engine:20} {measurement.value:9.2f} {measurement.unit:9} {fraction:20} "
        f"first call {measurement.first_seconds:6.2f} s, peak {measurement.peak_bytes / 1e9:5.1f} GB"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
