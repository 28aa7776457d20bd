"""The checks of `benchmarks.kernels`: every kernel on fresh random data against float64."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_candidates import Config
from benchmarks.kernel_cases import attention_arguments
from benchmarks.kernel_setting import Setting
from benchmarks.kernel_timing import Run
from modelscope_polylm.network.kernels import attention, layer_norm, linear
from modelscope_polylm.network.kernels import lm_head as output
from modelscope_polylm.network.kernels.configs import AttentionConfig, MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import kernel_settings

Check = Callable[[], float]
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}
PROCESSES = 14


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Norm of the error over the norm of the reference, in float64; infinite where a value is not finite."""
    value, reference = value.double(), reference.double()
    return float((value - reference).norm() / reference.norm()) if bool(torch.isfinite(value).all()) else float("inf")


def poison(*size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Fills the memory that the next tensor of this size is likely to get with NaN."""
    torch.full(size, float("nan"), dtype=dtype, device=device)


def check_linear(setting: Setting, rows: int, outputs: int, inputs: int, config: Config | None) -> float:
    # x: [rows, inputs], weight: [outputs, inputs]
    x, bias = setting.random(rows, inputs), setting.random(outputs)
    weight = setting.random(outputs, inputs, scale=inputs**-0.5)
    exact = F.linear(x.double(), weight.double(), bias.double())
    residual = setting.random(rows, outputs, dtype=torch.float32)
    expected = residual.double() + F.linear(x.double(), weight.double())
    poison(rows, outputs, dtype=setting.dtype, device=setting.device)
    error = relative_error(linear.linear(x, weight, bias, True, config), F.gelu(exact, approximate="tanh"))
    again = linear.linear(x, weight, bias, True, config)
    linear.add_product_(residual, x, weight, config)
    same = torch.equal(again, linear.linear(x, weight, bias, True, config))
    return max(error, relative_error(residual, expected)) if same else float("inf")


def check_norm(setting: Setting, rows: int, width: int) -> float:
    x = setting.random(rows, width, dtype=torch.float32, scale=3.0) + 1.0
    weight, bias = setting.random(width), setting.random(width)
    shift = setting.random(width, dtype=torch.float32)
    exact = F.layer_norm(x.double() + shift, (width,), weight.double(), bias.double(), 1e-5)
    poison(rows, width, dtype=setting.dtype, device=setting.device)
    return relative_error(layer_norm.layer_norm(x, weight, bias, 1e-5, shift), exact)


def check_attention(
    setting: Setting, rows: int, group: int, prompt: int, length: int, config: AttentionConfig | None
) -> float:
    qkv, keys, values, *rest = attention_arguments(setting, rows, group, prompt, length, 3)
    exact_keys, exact_values = keys.double(), values.double()
    with kernel_settings("torch"):
        exact = attention.decode_attention(qkv.double(), exact_keys, exact_values, *rest)
    poison(rows, qkv.shape[1] // 3, dtype=setting.dtype, device=setting.device)
    error = relative_error(attention.decode_attention(qkv, keys, values, *rest, config), exact)
    stored = torch.equal(keys.double(), exact_keys) and torch.equal(values.double(), exact_values)
    return error if stored else float("inf")


def check_output(setting: Setting, rows: int, vocab: int, inputs: int, top: int, limit: int) -> float:
    hidden, embedding = setting.random(rows, inputs), setting.random(vocab, inputs, scale=inputs**-0.5)
    exact = F.linear(hidden.double(), embedding.double())[:, :limit]
    logits = output.output_logits(hidden, embedding, limit)
    best, best_ids, log_sum = output.output_best(hidden, embedding, top, limit)
    masked = bool(torch.isneginf(logits[:, limit:]).all()) and bool(((best_ids >= 0) & (best_ids < limit)).all())
    errors = (
        relative_error(logits[:, :limit], exact),
        relative_error(best, exact.topk(top).values),
        relative_error(best, exact.gather(1, best_ids.long())),
        relative_error(log_sum, exact.logsumexp(-1)),
    )
    return max(errors) if masked else float("inf")


def checks(setting: Setting) -> Iterator[tuple[str, Check]]:
    """Name and run of every check: row counts and shapes that do not divide the blocks."""
    tiny = setting.device.type == "cpu"
    all_rows = (1, 3) if tiny else (1, 3, 4, 5, 16, 17, 64)
    sizes = ((48, 96),) if tiny else ((5120, 5120), (1000, 2064), (333, 5120))
    small = (
        VectorConfig(4, 64, 2),
        VectorConfig(8, 64, 4),
        MatrixConfig(64, 32, 4, 3),
        MatrixConfig(16, 32, 4, 2, even=True),
    )
    for rows, (outputs, inputs) in itertools.product(all_rows, sizes):
        yield f"linear {rows}x{outputs}x{inputs}", lambda a=(rows, outputs, inputs, None): check_linear(setting, *a)
    for config in small:
        yield f"linear 3x77x160 {config}", lambda c=config: check_linear(setting, 3, 77, 160, c)
    for rows in all_rows[:3]:
        yield f"norm {rows}", lambda r=rows: check_norm(setting, r, sizes[0][1])
    cases = (
        (1, 1, 5, 50),
        (3, 1, 0, 0),
        (4, 4, 33, 50),
        (6, 3, 0, 7),
        (8, 2, 20, 20),
        (64, 4, 100, 300),
        (1, 1, 700, 1999),
    )
    for rows, group, prompt, length in cases[: 4 if tiny else None]:
        for config in (None, AttentionConfig(16, 4, 1), AttentionConfig(16, 4, 7)):
            arguments = (rows, group, prompt, length, config)
            yield f"attention {arguments}", lambda a=arguments: check_attention(setting, *a)
    vocab, inputs, limit = (200, 64, 197) if tiny else (5003, 2048, 4999)
    for rows, top in ((1, 1), (4, 8), (5, 2), (17, 16), (64, 8))[: 2 if tiny else None]:
        yield f"output {rows} rows top {top}", lambda a=(rows, vocab, inputs, top, limit): check_output(setting, *a)


def run_share(setting: Setting, share: int, shares: int) -> list[tuple[str, torch.dtype, float, str]]:
    """Every `shares`-th check, from number `share` on: name, dtype, relative error (infinite if it failed), message."""
    outcomes = []
    with torch.inference_mode(), kernel_settings("triton"):
        for name, check in itertools.islice(checks(setting), share, None, shares):
            try:
                outcomes.append((name, setting.dtype, check(), ""))
            except Exception as error:
                outcomes.append((name, setting.dtype, float("inf"), f"{type(error).__name__}: {error}"[:300]))
    return outcomes


def run_checks(run: Run) -> None:
    """Every check in fp32 and in half precision; on CUDA in several processes, because each compiles its kernels."""
    cpu = run.setting.device.type == "cpu"
    settings = [
        replace(run.setting, dtype=dtype) for dtype in (torch.float32, torch.float16 if cpu else torch.bfloat16)
    ]
    if cpu:
        outcomes = [outcome for setting in settings for outcome in run_share(setting, 0, 1)]
    else:
        jobs = [(setting, share, PROCESSES) for setting in settings for share in range(PROCESSES)]
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
            outcomes = [outcome for part in pool.starmap_async(run_share, jobs).get(timeout=200) for outcome in part]
    worst: dict[str, float] = {}
    for name, dtype, error, message in outcomes:
        kind = f"{name.split()[0]} {dtype}"
        worst[kind] = max(worst.get(kind, 0.0), error)
        run.results.append({"section": "check", "name": name, "dtype": str(dtype), "error": error, "message": message})
        if not error < BOUNDS[dtype]:
            print(f"WRONG    {name} {dtype}: relative error {error:.2e} {message}", flush=True)
    for kind, error in worst.items():
        print(f"check    {kind:28s} worst relative error {error:.2e}", flush=True)
