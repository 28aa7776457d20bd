"""A chain of whole layers as the decode step runs them, for `benchmarks.kernels`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_cases import attention_arguments
from benchmarks.kernel_setting import PRODUCTS, Setting
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.layer_norm import layer_norm
from modelscope_polylm.network.kernels.linear import add_product_, linear
from modelscope_polylm.network.kernels.lm_head import output_best


@dataclass
class Chain:
    """Random weights of a network, and the cache of some rows."""

    norms: list[tuple[Tensor, Tensor]]
    weights: list[dict[str, Tensor]]
    biases: dict[str, Tensor]
    shift: Tensor
    embedding: Tensor

    @classmethod
    def random(cls, setting: Setting) -> Chain:
        shape = setting.shape
        scale = 0.5 * shape.width**-0.5
        return cls(
            [(1 + setting.random(shape.width, scale=0.1), setting.random(shape.width, scale=0.1)) for _ in range(2)],
            [
                {name: setting.random(*shape.product(name), scale=scale) for name in PRODUCTS}
                for _ in range(shape.layers)
            ],
            {name: setting.random(shape.product(name)[0], scale=0.1) for name in ("c_attn", "c_fc")},
            setting.random(shape.width, dtype=torch.float32, scale=0.1),
            setting.random(shape.vocab, shape.width, scale=0.02),
        )


@dataclass
class Rows:
    """The state of some rows: residual stream and cache of every layer."""

    start: Tensor
    residual: Tensor
    caches: list[tuple[Tensor, Tensor]]
    table: tuple[Any, ...]

    @classmethod
    def random(cls, setting: Setting, rows: int, group: int, prompt: int, length: int) -> Rows:
        start = setting.random(rows, setting.shape.width, dtype=torch.float32)
        _, keys, values, *table = attention_arguments(setting, rows, group, prompt, length, setting.shape.heads)
        caches = [(torch.randn_like(keys), torch.randn_like(values)) for _ in range(setting.shape.layers)]
        return cls(start, start.clone(), caches, tuple(table))


def run_layers(chain: Chain, rows: Rows, configs: dict[str, Any] | None = None) -> Tensor:
    """All layers on the rows' residual stream, 7 kernels each."""
    # residual: [R, D] fp32
    chosen = configs or {}
    rows.residual.copy_(rows.start)
    x = rows.residual
    (gamma_1, beta_1), (gamma_2, beta_2) = chain.norms
    bias, shift = chain.biases, chain.shift
    for weights, (keys, values) in zip(chain.weights, rows.caches, strict=True):
        normal = layer_norm(x, gamma_1, beta_1, 1e-5, shift)
        qkv = linear(normal, weights["c_attn"], bias["c_attn"], False, chosen.get("c_attn"))
        mixed = decode_attention(qkv, keys, values, *rows.table, chosen.get("attention"))
        add_product_(x, mixed, weights["attn.c_proj"], chosen.get("attn.c_proj"))
        normal = layer_norm(x, gamma_2, beta_2, 1e-5, shift)
        inner = linear(normal, weights["c_fc"], bias["c_fc"], True, chosen.get("c_fc"))
        add_product_(x, inner, weights["mlp.c_proj"], chosen.get("mlp.c_proj"))
    return x


def run_step(chain: Chain, rows: Rows, top: int, configs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
    """All layers, the output layer and the choice of the best tokens."""
    # -> values, ids: [R, top]
    hidden = layer_norm(run_layers(chain, rows, configs), *chain.norms[0], 1e-5, chain.shift)
    values, ids, _ = output_best(hidden, chain.embedding, top, chain.embedding.shape[0], (configs or {}).get("output"))
    return values, ids


def step_size(setting: Setting, rows: int, group: int, prompt: int, length: int, with_output: bool) -> int:
    """Bytes that a step must read: every weight once, every cached key and value once."""
    shape = setting.shape
    weights = sum(2 * outputs * inputs for outputs, inputs in map(shape.product, PRODUCTS))
    cache = 4 * shape.width * (rows // group * prompt + rows * (length - prompt))
    return shape.layers * (weights + cache) + (2 * shape.vocab * shape.width if with_output else 0)
