"""All figures of a run, as an object and as a JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelscope_polylm.cli.bench.measure import Measurement
from modelscope_polylm.cli.bench.workloads import CONTEXT_UNIT, ROWS_UNIT
from modelscope_polylm.errors import DependencyError, InputError, OptionError


@dataclasses.dataclass
class Report:
    """What was measured, where.

    Attributes:
        shape, dtype: the network's published shape or the model's name, and the precision of its weights.
        device, torch: the device's name and torch's version.
        limit_ms: the time in which the device reads all weights once; None if that is not known.
        results: the measurements, in their order.
    """

    shape: str
    dtype: str
    device: str
    torch: str
    limit_ms: float | None
    results: list[Measurement] = dataclasses.field(default_factory=list)

    def json(self) -> str:
        """All figures as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def read(cls, file: Path) -> Report:
        """A report that was written before. Raises InputError if the file is none."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{**fields, "results": [Measurement(**result) for result in fields["results"]]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} holds no figures of this benchmark ({type(error).__name__}: {error}): "
                "name a file that `polylm bench --out` wrote."
            ) from error


def read_reports(files: Sequence[Path]) -> Report:
    """Reports of runs of one shape on one kind of device, as one. Raises InputError if they differ."""
    first, *others = map(Report.read, files)
    for file, other in zip(files[1:], others, strict=True):
        for name in ("shape", "dtype", "device"):
            if getattr(other, name) != getattr(first, name):
                raise InputError(
                    f"{file} was measured with {name} {getattr(other, name)!r}, and {files[0]} with "
                    f"{getattr(first, name)!r}: draw them apart."
                )
        first.results += other.results
    return first


FORMATS = (".png", ".svg", ".pdf")
MARKERS = "osD^v"


def check_plot(file: Path) -> None:
    """Raise OptionError if no plot can be written there, DependencyError without matplotlib: better now than later."""
    if file.suffix not in FORMATS:
        raise OptionError(f"plot={str(file)!r} names no picture: end it in {', '.join(FORMATS)}.")
    if not file.parent.is_dir():
        raise OptionError(f"The folder {file.parent} does not exist: create it, or choose another place for the plot.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"A plot needs matplotlib ({error}): install it with pip install 'modelscope-polylm[plot]'."
        ) from error


def draw(report: Report, file: Path) -> None:
    """Write the two diagrams of a report to a file; its suffix names the format.

    Raises:
        InputError: if the report holds no point of either diagram.
    """
    from matplotlib.figure import Figure  # without pyplot, which looks for a screen

    contexts = _curves(report, CONTEXT_UNIT, lambda result: result.prompt)
    rows = _curves(report, ROWS_UNIT, lambda result: result.rows)
    if not contexts and not rows:
        raise InputError(
            f"Nothing to draw: no result has the unit {CONTEXT_UNIT} or {ROWS_UNIT}. Measure those rows of the table."
        )
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(f"PolyLM {report.shape}, {report.dtype}, {report.device}, torch {report.torch}")
    left, right = figure.subplots(1, 2)
    _draw_contexts(left, contexts, report.limit_ms)
    _draw_rows(right, rows, report.limit_ms)
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise OptionError(f"Cannot write the plot {file} ({error.strerror}): choose another place.") from error


def draw_files(files: Sequence[Path], plot: Path) -> None:
    """Draw what earlier runs wrote to JSON files. Raises what `check_plot`, `read_reports` and `draw` raise."""
    check_plot(plot)
    draw(read_reports(files), plot)


def _curves(report: Report, unit: str, place: Callable[[Measurement], int]) -> dict[str, tuple[list[int], list[float]]]:
    """Every engine's points, from left to right; what was measured twice counts as measured last."""
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for result in report.results:
        if result.unit == unit:
            points[result.engine][place(result)] = result.value
    return {engine: (sorted(values), [values[x] for x in sorted(values)]) for engine, values in points.items()}


def _draw_contexts(axes: Any, curves: dict[str, tuple[list[int], list[float]]], limit_ms: float | None) -> None:
    _draw_curves(axes, curves)
    if limit_ms:
        axes.axhline(limit_ms, color="grey", linestyle="--", label="reading the weights once")
    axes.set(title="Time of a token, greedy, 1 row", xlabel="tokens in the context", ylabel="ms, without prefill")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_rows(axes: Any, curves: dict[str, tuple[list[int], list[float]]], limit_ms: float | None) -> None:
    _draw_curves(axes, curves)
    ticks = sorted({x for places, _ in curves.values() for x in places}) or [1]
    if limit_ms:
        limits = [x / limit_ms * 1e3 for x in ticks]
        axes.plot(ticks, limits, "--", color="grey", label="reading the weights once a step")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(title="Throughput, greedy, 128 + 128 tokens", xlabel="rows", ylabel="new tokens/s, with prefill")
    axes.legend()


def _draw_curves(axes: Any, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    for number, (engine, (places, values)) in enumerate(curves.items()):
        axes.plot(places, values, marker=MARKERS[number % len(MARKERS)], label=engine)
    axes.grid(alpha=0.3)
