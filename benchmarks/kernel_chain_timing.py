"""Times chains of whole layers for `benchmarks.kernels`: serial, overlapped, with the swept configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.kernel_chain import Chain, Rows, run_layers, run_step, step_size
from benchmarks.kernel_checks import relative_error
from benchmarks.kernel_setting import group_of
from benchmarks.kernel_timing import Run
from modelscope_polylm.network.kernels.dispatch import kernel_settings


def chain_variants(run: Run, rows: int, sweep: bool) -> list[tuple[str, str, bool, dict[str, Any]]]:
    """Name, mode, overlap and configurations of the chains to time."""
    best = {key.rsplit(" ", 1)[0]: config for key, config in run.best.items() if key.endswith(f" {rows}")}
    variants: list[tuple[str, str, bool, dict[str, Any]]] = [
        ("torch", "torch", False, {}),
        ("serial", run.mode, False, {}),
        ("overlap", run.mode, True, {}),
    ]
    if sweep:
        variants += [("tuned serial", run.mode, False, best), ("tuned", run.mode, True, best)]
    return variants


def time_chain(run: Run, chain: Chain, rows: int, context: int, sweep: bool) -> None:
    """All layers in one graph: kernels one after the other, overlapped, with the swept configurations."""
    setting, group, top = run.setting, group_of(rows), 1 if rows == 1 else 8
    state = Rows.random(setting, rows, group, context // 2, context)
    sizes = [step_size(setting, rows, group, context // 2, context, whole) for whole in (False, True)]
    label = f"chain {rows} rows {context} tokens"
    outcomes: dict[str, torch.Tensor] = {}
    for name, mode, overlap, configs in chain_variants(run, rows, sweep):
        layers_call = partial(run_layers, chain, state, configs)
        step_call = partial(run_step, chain, state, top, configs)
        with kernel_settings(mode, overlap):
            layers = run.measure("layers", f"{label} {name}", [layers_call], sizes[0])
            outcomes[name] = state.residual.clone()
            step = run.measure("step", f"{label} {name}", [step_call], sizes[1])
        if layers < float("inf") and run.bandwidth:
            over = (layers - sizes[0] / run.bandwidth) / setting.shape.layers * 1e6
            print(f"         {name}: {over:.2f} us a layer beyond the reads, step {step * 1e3:.3f} ms", flush=True)
    compare_outcomes(run, label, outcomes)


def compare_outcomes(run: Run, label: str, outcomes: dict[str, torch.Tensor]) -> None:
    """Overlapped kernels must give the very bits of kernels run one after the other; others agree within rounding."""
    reference = outcomes["serial"]
    same = torch.equal(reference, outcomes["overlap"])
    errors = {name: relative_error(value, reference) for name, value in outcomes.items()}
    run.results.append({"section": "outcome", "name": label, "same": same, "errors": errors})
    verdict = "same bits" if same else "DIFFERENT BITS"
    print(f"outcome  {label}: overlap {verdict}; " + ", ".join(f"{n} {e:.1e}" for n, e in errors.items()), flush=True)
