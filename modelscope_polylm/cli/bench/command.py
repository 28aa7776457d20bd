"""`polylm bench`: speed on this machine, next to other engines in the same run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from modelscope_polylm.errors import OptionError, suggestion
from modelscope_polylm.terminal.flags import (
    CacheDtypeFlag,
    DeviceFlag,
    DtypeFlag,
    JsonFlag,
    RevisionFlag,
    complete_model,
)
from modelscope_polylm.terminal.output import write

DEFAULT_SHAPE = "13b"


def bench(
    *,
    model: Annotated[
        str | None,
        typer.Option(
            help="Measure with the weights of a folder, a hub id or a release.", autocompletion=complete_model
        ),
    ] = None,
    revision: RevisionFlag = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Random weights in the shape 13b (the default), 1.7b, 0.3b, or small to try the benchmark."),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            help="polylm, transformers, transformers-static; vllm, ctranslate2 and ctranslate2-int8 where they are "
            "installed. May be repeated; all if none."
        ),
    ] = None,
    works: Annotated[
        list[int] | None, typer.Option(help="Numbers of the table's rows, from 0; may be repeated. All if none.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls after a warm-up call.")] = 3,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    quantization: Annotated[
        list[str] | None,
        typer.Option(help="int8, fp8, int4 or none: measure polylm so. May be repeated; none if none is given."),
    ] = None,
    kv_cache_dtype: CacheDtypeFlag = None,
    out: Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw time against context and speed against rows: a .png, .svg or .pdf file.")
    ] = None,
    plot_from: Annotated[
        list[Path] | None,
        typer.Option(help="Measure nothing, and draw the figures of a file that --out wrote; may be repeated."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure speed, next to other engines.

    Decoding, prefill and batches; medians, and decoding as a share of what reading the weights allows.
    """
    from modelscope_polylm.backends.placement import choose_device, choose_dtype
    from modelscope_polylm.cli.bench import run
    from modelscope_polylm.cli.bench.report import draw_files
    from modelscope_polylm.cli.bench.workloads import SHAPES, WORKLOADS
    from modelscope_polylm.network.quantization import QUANTIZATIONS
    from modelscope_polylm.snapshot import open_snapshot
    from modelscope_polylm.terminal.models import find_model

    if plot_from:
        if plot is None:
            raise OptionError("--plot-from needs a file to draw into: add --plot FILE.png.")
        draw_files(plot_from, plot)
        return
    if model is not None and shape is not None:
        raise OptionError("--model has weights of its own, and --shape draws random ones: name one of them.")
    for each in quantization or ():
        _check("quantization", each, ("none", *QUANTIZATIONS))
    _check("shape", shape or DEFAULT_SHAPE, SHAPES)
    for engine in engines or ():
        _check("engines", engine, run.ENGINES)
    for number in works or ():
        _check("works", number, range(len(WORKLOADS)))
    if out is not None and not out.parent.is_dir():
        raise OptionError(f"The folder {out.parent} does not exist: create it, or choose another output.")
    workloads = [WORKLOADS[number] for number in works] if works else WORKLOADS
    target = choose_device(device)
    precision = str(choose_dtype(dtype, target)).removeprefix("torch.")
    snapshot = None if model is None else open_snapshot(find_model(model, revision))
    name = model or shape or DEFAULT_SHAPE
    wanted = engines or tuple(run.ENGINES)
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        report = run.bench(
            name, str(target), precision, wanted, workloads, repeats, out, plot, snapshot, quantization or (),
            kv_cache_dtype,
        )  # fmt: skip
    if as_json:
        write(f"{report.json()}\n")


def _check(name: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        raise OptionError(f"{name}={value!r} is unknown: {suggestion(value, known)}")
