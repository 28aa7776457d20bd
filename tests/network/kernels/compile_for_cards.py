"""Compiles the kernels for a card that this machine does not have, and checks that they fit: a program of its own.

Its arguments are the card's compute capability, such as 90, and the KiB of shared memory that a program may have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import LMHead
from modelscope_polylm.generation.state import BatchState
from modelscope_polylm.network.kernels import configs, order_triton
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.dispatch import kernel_settings
from modelscope_polylm.network.kernels.layer_norm import layer_norm
from modelscope_polylm.network.kernels.linear import add_product_, linear
from modelscope_polylm.network.kernels.lm_head import lm_head_logits, lm_head_topk
from modelscope_polylm.network.kernels.prefill_attention import prefill_attention
from modelscope_polylm.network.kernels.quantized import embedding_rows, plain
from modelscope_polylm.network.quantization import FORMATS, QUANTIZATIONS, QuantizedMatrix

WITHOUT_BFLOAT16 = (75,)
SLOW_TO_COMPILE = 75  # has no matrix units that this Triton knows
FP32_CARD = 90
compiled: list[str] = []


class Card:
    """Enough of a Triton driver to compile, not to launch."""

    def __init__(self, capability: int, shared_memory: int) -> None:
        self.capability, self.shared_memory = capability, shared_memory

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        # a kernel is compiled once for each device
        return self.capability

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def compile_only(kernel: JITFunction, grid: Any) -> Callable[..., None]:
    """Take the place of a launch."""

    def launch(*arguments: Any, **options: Any) -> None:
        binary = kernel.warmup(*arguments, grid=grid, **options)
        capability = driver.active.capability
        label = f"{kernel.__name__} for {capability}"
        assert binary.metadata.shared <= driver.active.shared_memory, f"{label}: {binary.metadata.shared} bytes shared"
        waits = "griddepcontrol.wait" in binary.asm["ptx"]
        assert waits == (capability >= 90), f"{label}: waits for the kernel before it: {waits}"
        compiled.append(label)

    return launch


def zeros(*size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    without = driver.active.capability in WITHOUT_BFLOAT16
    return torch.zeros(*size, dtype=dtype or (torch.float16 if without else torch.bfloat16))


def integers(*size: int) -> torch.Tensor:
    return torch.ones(*size, dtype=torch.int32)


def compile_step(rows: int, dtype: torch.dtype | None = None, heads: int = 40, vocab: int = 1024) -> None:
    """Call every operation of a decode step once with its default configuration, in the sizes of the 13B network."""
    d = 128 * heads
    x, residual, bias = zeros(rows, d, dtype=dtype), torch.zeros(rows, d), zeros(4 * d, dtype=dtype)
    layer_norm(residual, bias[:d], bias[:d], 1e-5, torch.zeros(d))
    linear(x, zeros(3 * d, d, dtype=dtype), bias[: 3 * d])
    add_product_(residual, x, zeros(d, d, dtype=dtype))
    linear(x, zeros(4 * d, d, dtype=dtype), bias, gelu=True)
    add_product_(residual, zeros(rows, 4 * d, dtype=dtype), zeros(d, 4 * d, dtype=dtype))
    cache, state = zeros(heads, 64, 128, dtype=dtype), (integers(rows, 32), *(integers(rows) for _ in range(3)))
    decode_attention(zeros(rows, 3 * d, dtype=dtype), cache, cache, *state, integers(rows, 2))
    for k in (1, 8):
        lm_head_topk(x, zeros(vocab, d, dtype=dtype), k, vocab)
    lm_head_logits(x, zeros(vocab, d, dtype=dtype), vocab)


def quantized(outputs: int, inputs: int, name: str) -> QuantizedMatrix:
    """A matrix of zeros."""
    kind = FORMATS[name]
    words = torch.zeros(outputs, kind.words(inputs), dtype=torch.int32)
    scales = torch.ones(kind.groups(inputs), outputs, dtype=torch.bfloat16)
    return QuantizedMatrix(words, scales, name, inputs, zeros(1).dtype)


def compile_quantized_step(rows: int, quantization: str, heads: int = 40, vocab: int = 1024) -> None:
    """The products of a decode step, attention over an int8 cache, and what many rows need."""
    d, (projections, embedding) = 128 * heads, QUANTIZATIONS[quantization]
    x, residual, bias = zeros(rows, d), torch.zeros(rows, d), zeros(4 * d)
    linear(x, quantized(4 * d, d, projections), bias, gelu=True)
    add_product_(residual, zeros(rows, 4 * d), quantized(d, 4 * d, projections))
    head = quantized(vocab, d, embedding)
    lm_head_topk(x, head, 8, vocab)
    lm_head_logits(x, head, vocab)
    embedding_rows(head, torch.zeros(rows, dtype=torch.int64))
    plain(quantized(d, d, projections))
    cache, scales = torch.zeros(heads, 64, 128, dtype=torch.int8), torch.zeros(2, heads, 64, dtype=torch.bfloat16)
    state = (integers(rows, 32), *(integers(rows) for _ in range(3)), integers(rows, 2))
    decode_attention(zeros(rows, 3 * d), cache, cache, *state, scales=scales)


def compile_prefill(dtype: torch.dtype | None = None, heads: int = 40) -> None:
    """The attention of prefill, in the sizes of the 13B network."""
    qkv, caches = zeros(300, 3 * 128 * heads, dtype=dtype), zeros(2, heads, 512, 128, dtype=dtype)
    prefill_attention(qkv, *caches, integers(1, 512), integers(5, 5))
    whole, scales = caches.to(torch.int8), torch.zeros(2, heads, 512, dtype=torch.bfloat16)
    prefill_attention(qkv, *whole, integers(1, 512), integers(5, 5), scales=scales)


def compile_beam_step(beams: int, counts_prompt: bool, early_stopping: bool | str, vocab: int = 1024) -> None:
    """Choose among the beams of one prompt once."""
    state, head = BatchState(beams, 2048, torch.device("cpu")), LMHead(zeros(vocab, 128), vocab)
    search = BeamSearch(state, head, beams, 1, counts_prompt, early_stopping)
    search.select(zeros(beams, 128), torch.arange(beams))


def compile_all(capability: int, shared_memory: int) -> None:
    """Every kernel with the block shapes that this card takes."""
    driver.set_active(Card(capability, shared_memory))
    order_triton.overlaps = lambda device: capability >= 90
    configs.shared_memory = lambda device: shared_memory
    # each number of rows has block shapes of its own
    for rows in (1, 64) if capability == SLOW_TO_COMPILE else (1, 16, 64, 256):
        compile_step(rows)
    # fp8 is unpacked in the memory of int8; few rows only differ in the number of their stages
    for rows in (1, 64) if capability == FP32_CARD else (1,) if capability == SLOW_TO_COMPILE else (64,):
        for quantization in QUANTIZATIONS if capability == FP32_CARD else ("int8", "int4"):
            compile_quantized_step(rows, quantization)
    compile_prefill()
    if capability == FP32_CARD:
        compile_step(8, torch.float32)
        compile_prefill(torch.float32)
    for beams in (4, 8):
        compile_beam_step(beams, True, True)
        compile_beam_step(beams, False, "never")


if __name__ == "__main__":
    JITFunction.__getitem__ = compile_only
    configs.multiprocessors = lambda device: 132
    with kernel_settings("triton"):
        compile_all(int(sys.argv[1]), int(sys.argv[2]) << 10)
    print(len(compiled), "kernels compiled")
    sys.exit(0)
