"""Times engines on workloads, prints the table while it grows, and says beforehand what the run will take."""

from __future__ import annotations

import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch

from modelscope_polylm.backends.placement import free_bytes
from modelscope_polylm.cli.bench.engines import (
    BenchEngine,
    CTranslate2Engine,
    PolyLMEngine,
    TransformersEngine,
    VllmEngine,
    release_memory,
)
from modelscope_polylm.cli.bench.report import Measurement, Report, check_plot, draw
from modelscope_polylm.cli.bench.workloads import (
    CONTEXT_UNIT,
    ROWS_UNIT,
    SHAPES,
    WORKLOADS,
    Workload,
    random_snapshot,
)
from modelscope_polylm.errors import DeviceError, OptionError
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.kernels.lm_head import lm_head_topk
from modelscope_polylm.network.weights import weight_bytes
from modelscope_polylm.snapshot import Snapshot

ENGINES: dict[str, Callable[..., BenchEngine]] = {
    "polylm": PolyLMEngine,
    "transformers": functools.partial(TransformersEngine, static_cache=False),
    "transformers-static": functools.partial(TransformersEngine, static_cache=True),
}
if importlib.util.find_spec("vllm") is not None:
    ENGINES["vllm"] = VllmEngine
if importlib.util.find_spec("ctranslate2") is not None:
    ENGINES["ctranslate2"] = functools.partial(CTranslate2Engine, quantization="float32")
    ENGINES["ctranslate2-int8"] = functools.partial(CTranslate2Engine, quantization="int8")


def bench(
    shape: str = "13b",
    device: str = "cuda",
    dtype: str = "bfloat16",
    engines: Sequence[str] = tuple(ENGINES),
    workloads: Sequence[Workload] = WORKLOADS,
    repeats: int = 3,
    out: Path | None = None,
    plot: Path | None = None,
    snapshot: Snapshot | None = None,
    quantizations: Sequence[str] = (),
    kv_cache_dtype: str | None = None,
) -> Report:
    """Measure every engine on every workload; one that fails is reported and the rest goes on.

    Args:
        shape: one of `SHAPES`, with random weights; the name to report where there is a snapshot.
        device, dtype: where the weights are, and their precision.
        engines: keys of `ENGINES`.
        workloads: the rows of the table.
        repeats: timed calls after the warm-up call.
        out: a JSON file for all figures, written anew after each of them.
        plot: a picture of the two diagrams, drawn at the end.
        snapshot: has the sizes and weights; None draws random ones in `shape`.
        quantizations: the engine `polylm` is measured with each of these in turn; 'none' keeps all bits of the weights.
        kv_cache_dtype: of the engine `polylm`.

    Raises:
        OptionError: the picture cannot be written, no workload is a point of a diagram, or none fits into the context.
        DeviceError: the device has too little free memory.
        SnapshotError: an engine cannot take the snapshot.
        DependencyError: the picture needs matplotlib, which is missing.
    """
    model, target, precision = snapshot or random_snapshot(shape), torch.device(device), getattr(torch, dtype)
    workloads = _fitting(workloads, model.config.max_positions)
    if plot is not None:
        check_plot(plot)
        if not any(workload.unit in (CONTEXT_UNIT, ROWS_UNIT) for workload in workloads):
            raise OptionError("None of the chosen works is a point of a plot: choose others, or leave out --plot.")
    kinds = {None if each == "none" else each for each in quantizations} if set(engines) == {"polylm"} else {None}
    check_memory(shape, model.config, workloads, precision, free_bytes(target), kinds or {None})
    bandwidth = read_bandwidth(target)
    limit = model.config.parameters * precision.itemsize / bandwidth
    if target.type == "cpu":
        seconds = least_seconds(model.config, workloads, limit, compute_rate(target, precision))
        _announce(seconds, len(engines), len(workloads), 1 + repeats)
    report = Report(shape, dtype, _device_name(target), torch.__version__, limit * 1e3)
    print(f"{shape} {dtype} on {report.device}, torch {report.torch}: weights are read in {limit * 1e3:.2f} ms")
    for make in _makers(engines, quantizations, kv_cache_dtype):
        release_memory()
        engine = make(model, target, precision)
        read = weight_bytes(model.config, precision.itemsize, engine.quantization) / bandwidth
        for measurement in _measurements(engine, workloads, repeats):
            report.results.append(measurement)
            print(_line(measurement, read * 1e3), flush=True)
            if out is not None:
                out.write_text(report.json(), encoding="utf-8")
        del engine
    if plot is not None:
        draw(report, plot)
    return report


def _makers(
    engines: Sequence[str], quantizations: Sequence[str], kv_cache_dtype: str | None
) -> Iterator[Callable[..., BenchEngine]]:
    """What makes each engine of a snapshot, a device and a dtype."""
    cache = {"kv_cache_dtype": kv_cache_dtype} if kv_cache_dtype else {}
    for name in engines:
        for quantization in (quantizations or ("none",)) if name == "polylm" else ("none",):
            bits = {} if quantization == "none" else {"quantization": quantization}
            yield functools.partial(ENGINES[name], **bits, **cache) if name == "polylm" else ENGINES[name]


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time until the device is idle again."""
    _synchronize()
    start = time.perf_counter()
    action()
    _synchronize()
    return time.perf_counter() - start


def measure(engine: BenchEngine, workload: Workload, repeats: int) -> Measurement:
    """Run the workload once to warm up, then `repeats` times."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    first = _counted_seconds(engine, workload)
    seconds = tuple(_counted_seconds(engine, workload) for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    value = workload.value(statistics.median(seconds))
    size = (workload.rows, workload.prompt, workload.new)
    return Measurement(workload.name, engine.name, *size, workload.unit, value, first, seconds, peak)


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which weights can be read: the faster of the library's and our product with one vector."""
    # far beyond any cache; in the shape of the LM head, which the library reads fast where it is slow on taller ones
    rows, hidden_size, calls = (256_000, 5120, 8) if device.type == "cuda" else (25_600, 5120, 1)
    matrix = torch.empty(rows, hidden_size, dtype=torch.bfloat16, device=device).normal_()
    vector = torch.randn(hidden_size, dtype=torch.bfloat16, device=device)

    def rate(product: Callable[[], object]) -> float:
        seconds = [timed(lambda: [product() for _ in range(calls)]) for _ in range(8)]
        return calls * matrix.numel() * 2 / statistics.median(seconds[3:])

    return max(rate(lambda: torch.mv(matrix, vector)), rate(lambda: lm_head_topk(vector[None], matrix, 1, rows)))


def compute_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of the library's product of 256 rows with a square matrix."""
    matrix = torch.randn(4096, 4096, device=device, dtype=dtype)
    seconds = min(timed(lambda: torch.mm(matrix[:256], matrix)) for _ in range(3))
    return 2 * 256 * 4096 * 4096 / seconds


def check_memory(
    shape: str,
    config: PolyLMConfig,
    workloads: Sequence[Workload],
    dtype: torch.dtype,
    free: float,
    quantizations: Collection[str | None] = (None,),
) -> None:
    """Raise DeviceError unless the weights and the largest KV cache fit into the free bytes."""
    positions = max(each.sequences * (each.prompt + each.new) for each in workloads)
    cache = 2 * config.layers * config.hidden_size * positions
    weights = max(weight_bytes(config, dtype.itemsize, each) for each in quantizations)
    needed = weights + cache * dtype.itemsize
    if needed > free:
        name = f"{shape} in {str(dtype).removeprefix('torch.')}"
        raise DeviceError(
            f"{name} needs {needed / 1e9:.1f} GB for weights and KV cache, and {free / 1e9:.1f} GB are free: choose a "
            f"smaller --shape ({', '.join(SHAPES)}), another --dtype, --engines polylm --quantization int4, or --works "
            "with fewer rows."
        )


def least_seconds(config: PolyLMConfig, workloads: Sequence[Workload], limit: float, rate: float) -> float:
    """Fewest seconds that one call of each workload can take.

    Args:
        config: sizes of the network.
        workloads: what is run.
        limit: seconds in which all weights are read once, which every step does.
        rate: floating-point operations per second.
    """
    calls = [part for each in workloads for part in (each, each.uncounted()) if part is not None]
    layers = config.parameters - config.vocab_size * config.hidden_size
    return sum(
        max(limit, 2 * layers * call.rows * call.prompt / rate)
        + (call.new - 1) * max(limit, 2 * config.parameters * call.sequences / rate)
        for call in calls
    )


def _announce(seconds: float, engines: int, works: int, calls: int) -> None:
    """Say how long all calls take at least, where one call of each work takes so many seconds."""
    size = f"engines: {engines}, works: {works}, calls of each: {calls}"
    text = f"This takes at least {_readable_seconds(engines * calls * seconds)} on this CPU ({size})."
    print(f"{text} --engines, --works and --repeats choose fewer.", file=sys.stderr, flush=True)


def _readable_seconds(seconds: float) -> str:
    """5400 -> '1.5 hours'."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _counted_seconds(engine: BenchEngine, workload: Workload) -> float:
    """Seconds of one call, without the part that does not count."""
    whole, uncounted = timed(lambda: engine.run(workload)), workload.uncounted()
    return whole if uncounted is None else whole - timed(lambda: engine.run(uncounted))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _fitting(workloads: Sequence[Workload], positions: int) -> list[Workload]:
    fitting = [workload for workload in workloads if workload.prompt + workload.new <= positions]
    for workload in workloads:
        if workload not in fitting:
            print(f"{workload.name:30} left out: it needs more than {positions} positions", file=sys.stderr)
    if not fitting:
        raise OptionError(f"None of the chosen works fits into the network's {positions} positions: choose others.")
    return fitting


def _measurements(engine: BenchEngine, workloads: Sequence[Workload], repeats: int) -> Iterator[Measurement]:
    for workload in workloads:
        try:
            yield measure(engine, workload, repeats)
        except (RuntimeError, ValueError) as error:
            print(f"{workload.name:30} {engine.name:20} failed: {type(error).__name__}: {error}", file=sys.stderr)


def _line(measurement: Measurement, limit_ms: float) -> str:
    has_limit = measurement.unit in ("ms/step", CONTEXT_UNIT)
    share = f"{limit_ms / measurement.value:6.1%} of the limit" if has_limit else ""
    return (
        f"{measurement.work:30} {measurement.engine:20} {measurement.value:9.2f} {measurement.unit:9} {share:20} "
        f"first call {measurement.first_seconds:6.2f} s, peak {measurement.peak_bytes / 1e9:5.1f} GB"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
