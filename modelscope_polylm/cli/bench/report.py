"""What a run of `polylm bench` found: measurements, their JSON file, and two diagrams."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelscope_polylm.cli.bench.workloads import CONTEXT_UNIT, ROWS_UNIT
from modelscope_polylm.errors import DependencyError, InputError, OptionError, install_command

FORMATS = (".png", ".svg", ".pdf")
MARKERS = "osD^v"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One engine's times for one workload.

    Attributes:
        work, engine: names of the workload and the engine.
        rows, prompt, new: the workload's size, in prompts and in tokens of each.
        unit, value: the median in the workload's unit.
        first_seconds: the first call, which compiles and captures.
        seconds: the calls after it, without the part that does not count.
        peak_bytes: most memory allocated on the GPU, 0 on a CPU.
    """

    work: str
    engine: str
    rows: int
    prompt: int
    new: int
    unit: str
    value: float
    first_seconds: float
    seconds: tuple[float, ...]
    peak_bytes: int


@dataclasses.dataclass
class Report:
    """What was measured, where.

    Attributes:
        shape, dtype: the network's published shape or the model's name, and the precision of its weights.
        device, torch: the device's name and torch's version.
        limit_ms: the time in which the device reads all weights once, in milliseconds; None if that is unknown.
        results: the measurements, in order.
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
        """Read what `json` wrote. Raises InputError where the file holds something else."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{**fields, "results": [Measurement(**result) for result in fields["results"]]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} holds no figures of this benchmark ({type(error).__name__}: {error}): "
                "name a file that `polylm bench --out` wrote."
            ) from error


def read_reports(files: Sequence[Path]) -> Report:
    """Join the reports of several runs. Raises InputError unless shape, dtype and device are the same."""
    first, *others = map(Report.read, files)
    for file, other in zip(files[1:], others, strict=True):
        for name in ("shape", "dtype", "device"):
            if getattr(other, name) != getattr(first, name):
                raise InputError(
                    f"{file} was measured with {name} {getattr(other, name)!r}, and {files[0]} with "
                    f"{getattr(first, name)!r}: draw them separately."
                )
        first.results += other.results
    return first


def check_plot(file: Path) -> None:
    """Raise OptionError if no plot can be written there, DependencyError without matplotlib."""
    if file.suffix not in FORMATS:
        raise OptionError(f"plot={str(file)!r} names no picture: end it in {', '.join(FORMATS)}.")
    if not file.parent.is_dir():
        raise OptionError(f"The folder {file.parent} does not exist: create it, or choose another folder for the plot.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"A plot needs matplotlib ({error}): install it with {install_command('plot')}."
        ) from error


def draw(report: Report, file: Path) -> None:
    """Draw time against context and speed against rows; the file's suffix names the format.

    Raises:
        InputError: the report holds no point of either diagram.
        OptionError: the file cannot be written.
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
        raise OptionError(f"Cannot write the plot {file} ({error.strerror}): choose another file.") from error


def draw_files(files: Sequence[Path], plot: Path) -> None:
    """Draw the JSON files of earlier runs. Raises as `check_plot`, `read_reports` and `draw`."""
    check_plot(plot)
    draw(read_reports(files), plot)


def _curves(report: Report, unit: str, x_of: Callable[[Measurement], int]) -> dict[str, tuple[list[int], list[float]]]:
    """Engine to its x and y values, from left to right; of a point that was measured twice the last one counts."""
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for result in report.results:
        if result.unit == unit:
            points[result.engine][x_of(result)] = result.value
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
    ticks = sorted({x for xs, _ in curves.values() for x in xs}) or [1]
    if limit_ms:
        limits = [x / limit_ms * 1e3 for x in ticks]
        axes.plot(ticks, limits, "--", color="grey", label="reading the weights once a step")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(title="Throughput, greedy, 128 + 128 tokens", xlabel="rows", ylabel="new tokens/s, with prefill")
    axes.legend()


def _draw_curves(axes: Any, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    for number, (engine, (xs, ys)) in enumerate(curves.items()):
        axes.plot(xs, ys, marker=MARKERS[number % len(MARKERS)], label=engine)
    axes.grid(alpha=0.3)
