"""Compiles the kernels for cards that this machine does not have, and checks that they fit: a program of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import OutputLayer
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Rows
from modelscope_polylm.network.kernels import configs, order_triton
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.dispatch import kernel_settings
from modelscope_polylm.network.kernels.layer_norm import layer_norm
from modelscope_polylm.network.kernels.linear import add_product_, linear
from modelscope_polylm.network.kernels.lm_head import output_best, output_logits
from modelscope_polylm.network.kernels.prefill_attention import prefill_attention

# compute capability, and KiB of shared memory of one program: H100 and H200, A100, GeForce 30, 40 and 50, T4
CARDS = {90: 227, 80: 163, 86: 99, 89: 99, 120: 99, 75: 64}
WITHOUT_BFLOAT16 = (75,)
compiled: list[str] = []


class Card:
    """Enough of a Triton driver to compile, not to launch."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        # a kernel is compiled once for each device
        return self.capability

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def compile_only(kernel: JITFunction, grid: Any) -> Callable[..., None]:
    """Takes the place of a launch."""

    def launch(*arguments: Any, **options: Any) -> None:
        binary = kernel.warmup(*arguments, grid=grid, **options)
        capability = driver.active.capability
        label = f"{kernel.__name__} for {capability}"
        assert binary.metadata.shared <= CARDS[capability] << 10, f"{label}: {binary.metadata.shared} bytes shared"
        waits = "griddepcontrol.wait" in binary.asm["ptx"]
        assert waits == (capability >= 90), f"{label}: waits for the kernel before it: {waits}"
        compiled.append(label)

    return launch


def zeros(*size: int) -> torch.Tensor:
    without = driver.active.capability in WITHOUT_BFLOAT16
    return torch.zeros(*size, dtype=torch.float16 if without else torch.bfloat16)


def compile_step(rows: int, group: int, heads: int = 40, vocab: int = 1024) -> None:
    """Calls every operation once with its default configuration, in the sizes of the 13B network."""
    width = 128 * heads
    x, residual, bias = zeros(rows, width), torch.zeros(rows, width), zeros(4 * width)
    layer_norm(residual, bias[:width], bias[:width], 1e-5, torch.zeros(width))
    linear(x, zeros(3 * width, width), bias[: 3 * width])
    add_product_(residual, x, zeros(width, width))
    linear(x, zeros(4 * width, width), bias, gelu=True)
    add_product_(residual, zeros(rows, 4 * width), zeros(width, 4 * width))
    cache = zeros(heads, 64, 128)
    table, lengths = torch.zeros(rows, 32, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
    decode_attention(zeros(rows, 3 * width), cache, cache, table, lengths, lengths, group)
    output_best(x, zeros(vocab, width), 1 if rows == 1 else 2 * group, vocab)
    output_logits(x, zeros(vocab, width), vocab)


def compile_prefill(tokens: int = 300, heads: int = 40) -> None:
    """The kernels of prefill, in the sizes of the 13B network."""
    width = 128 * heads
    norm, caches = zeros(width), zeros(2, heads, 512, 128)
    layer_norm(torch.zeros(tokens, width), norm, norm, 1e-5, torch.zeros(width))
    prefill_attention(zeros(tokens, 3 * width), 1, heads, (torch.arange(tokens), *caches))


def compile_beam_step(beams: int, rules: str, early_stopping: bool | str, vocab: int = 1024) -> None:
    """Chooses among the beams of one prompt once."""
    options = GenerationOptions(num_beams=beams, beam_rules=rules, early_stopping=early_stopping)
    rows, output = Rows(1, beams, 2048, torch.device("cpu")), OutputLayer(zeros(vocab, 128), vocab)
    BeamSearch(rows, output, torch.zeros(1, dtype=torch.int64), options).select(zeros(beams, 128))


def compile_all(capability: int) -> None:
    """Every kernel with the block shapes that this card takes."""
    driver.set_active(Card(capability))
    order_triton.overlaps = lambda device: capability >= 90
    configs.shared_memory = lambda device: CARDS[capability] << 10
    # each number of rows has block shapes of its own
    for rows, group in ((1, 1), (4, 4), (16, 1), (32, 4), (64, 1)):
        compile_step(rows, group)
    compile_prefill()
    for beams in (4, 8):
        compile_beam_step(beams, "4.31", True)
        compile_beam_step(beams, "5", "never")


if __name__ == "__main__":
    JITFunction.__getitem__ = compile_only
    configs.multiprocessors = lambda device: 132
    with kernel_settings("triton"):
        for card in CARDS:
            compile_all(card)
    print(len(compiled), "kernels compiled")
    sys.exit(0)
