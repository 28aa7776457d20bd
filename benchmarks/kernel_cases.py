"""The operations that `benchmarks.kernels` times: arguments, bytes and configurations worth trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.kernel_candidates import Config, attention_sweep, output_sweep, prefill_attention_sweep, product_sweep
from benchmarks.kernel_setting import Setting
from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import OutputLayer
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Request, Rows
from modelscope_polylm.network.kernels import attention, layer_norm, linear, prefill_attention
from modelscope_polylm.network.kernels import lm_head as output

Calls = list[Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """One operation: `calls(config)` are runs of it over different memory, `size` the bytes that one must move."""

    label: str
    size: int
    calls: Callable[[Any], Calls]
    configs: Sequence[Config] = ()


def product_case(setting: Setting, name: str, rows: int) -> Case:
    """A projection with what is fused to it: bias and GELU (c_fc) or the residual sum (both c_proj)."""
    outputs, inputs = setting.shape.product(name)
    size = 2 * (outputs * inputs + rows * (outputs + inputs))
    outputs = min(outputs, 1024) if setting.small else outputs
    weights = [setting.random(outputs, inputs, scale=0.02) for _ in setting.copies(size)]
    x, bias = setting.random(rows, inputs), setting.random(outputs)
    residual = setting.random(rows, outputs, dtype=torch.float32)

    def calls(config: Any) -> Calls:
        if name.endswith("c_proj"):
            return [lambda w=w: linear.add_product_(residual, x, w, config) for w in weights]
        return [lambda w=w: linear.linear(x, w, bias, name == "c_fc", config) for w in weights]

    return Case(f"{name} {rows} rows", size, calls, product_sweep(setting, rows))


def norm_case(setting: Setting, rows: int) -> Case:
    width = setting.shape.width
    weight, bias = setting.random(width), setting.random(width)
    x, shift = setting.random(rows, width, dtype=torch.float32), setting.random(width, dtype=torch.float32)
    return Case(
        f"norm {rows} rows",
        6 * rows * width,
        lambda _: [lambda: layer_norm.layer_norm(x, weight, bias, 1e-5, shift)] * 20,
    )


def attention_arguments(
    setting: Setting, rows: int, group: int, prompt: int, length: int, heads: int
) -> tuple[Any, ...]:
    """Random arguments of decode_attention; the rows of a group share the slots of their prompt."""
    slots = rows // group * prompt + rows * (length - prompt + 1)
    order = torch.randperm(slots, device=setting.device).int()
    shared = order[: rows // group * prompt].view(rows // group, prompt).repeat_interleave(group, 0)
    own = order[rows // group * prompt :].view(rows, -1)
    table = torch.full((rows, length + 8), -1, dtype=torch.int32, device=setting.device)
    table[:, : length + 1] = torch.cat([shared, own], 1)
    lengths = torch.full((rows,), length, dtype=torch.int32, device=setting.device)
    keys, values = (setting.random(heads, slots, setting.shape.head_width) for _ in range(2))
    qkv = setting.random(rows, 3 * heads * setting.shape.head_width)
    return qkv, keys, values, table, lengths, torch.full_like(lengths, prompt), group


def attention_case(setting: Setting, rows: int, group: int, prompt: int, length: int) -> Case:
    heads = setting.shape.heads
    size = 4 * setting.shape.width * (rows // group * prompt + rows * (length - prompt))
    sets = [attention_arguments(setting, rows, group, prompt, length, heads) for _ in setting.copies(4 * size)]
    return Case(
        f"attention {rows}/{group} rows {prompt}+{length - prompt}",
        size,
        lambda config: [lambda a=a: attention.decode_attention(*a, config) for a in sets],
        attention_sweep(setting, rows, group),
    )


def output_case(setting: Setting, rows: int, top: int) -> Case:
    vocab, width = setting.shape.vocab, setting.shape.width
    size = 2 * (vocab + rows) * width
    vocab = min(vocab, 2048) if setting.small else vocab
    hidden, embedding = setting.random(rows, width), setting.random(vocab, width, scale=0.02)
    return Case(
        f"output {rows} rows top {top}",
        size,
        lambda config: [lambda: output.output_best(hidden, embedding, top, vocab - 3, config)] * 2,
        output_sweep(setting, rows),
    )


def logits_case(setting: Setting, rows: int) -> Case:
    vocab, width = setting.shape.vocab, setting.shape.width
    hidden, embedding = setting.random(rows, width), setting.random(vocab, width, scale=0.02)
    return Case(
        f"logits {rows} rows",
        2 * (vocab + rows) * width + 4 * rows * vocab,
        lambda config: [lambda: output.output_logits(hidden, embedding, vocab - 3, config)] * 2,
    )


def prefill_attention_case(setting: Setting, prompts: int, length: int) -> Case:
    """Attention of whole prompts, keys and values written to the cache."""
    shape, tokens = setting.shape, prompts * length
    size = 12 * tokens * shape.width
    sets = [setting.random(tokens, 3 * shape.width) for _ in setting.copies(size)]
    slots = torch.arange(tokens, device=setting.device)
    kept = (slots, *(setting.random(shape.heads, tokens, shape.head_width) for _ in range(2)))
    return Case(
        f"prefill attention {prompts} x {length}",
        size,
        lambda config: [
            lambda q=q: prefill_attention.prefill_attention(q, prompts, shape.heads, kept, config) for q in sets
        ],
        prefill_attention_sweep(setting),
    )


class FixedOutput(OutputLayer):
    """An output layer that has found its best tokens already: what is timed is the choice among the beams."""

    def __init__(self, setting: Setting, rows: int, count: int) -> None:
        super().__init__(setting.random(1, 1), setting.shape.vocab)
        scores = -setting.random(rows, count, dtype=torch.float32).abs()
        self.found = scores, scores, torch.randint(3, setting.shape.vocab, (rows, count), device=setting.device)

    def best(self, hidden: torch.Tensor, rows: Rows, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.found


def beams_case(setting: Setting, prompts: int, beams: int) -> Case:
    """The choice among the beams of some prompts, 128 tokens behind each."""
    rows = Rows(prompts, beams, 2048, setting.device)
    rows.begin([Request([5] * 32, 256)] * prompts)
    options = GenerationOptions(num_beams=beams, early_stopping=True)
    ends = torch.tensor([2], device=setting.device)
    search = BeamSearch(rows, FixedOutput(setting, prompts * beams, 2 * beams), ends, options)
    search.begin()
    rows.lengths += 128
    hidden = setting.random(1, 1)
    size = prompts * beams * (2 * beams * 12 + 2 * 4 * 128)
    return Case(f"choice among {prompts} x {beams} beams", size, lambda _: [lambda: search.select(hidden)] * 20)


CASES: dict[str, Callable[..., Case]] = {
    "product": product_case, "norm": norm_case, "attention": attention_case, "output": output_case,
    "logits": logits_case, "prefill attention": prefill_attention_case, "beams": beams_case,
}  # fmt: skip
