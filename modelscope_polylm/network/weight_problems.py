"""Compares the tensors of a checkpoint with those that the network declares."""

from __future__ import annotations

from collections.abc import Mapping

from modelscope_polylm.network.checkpoint import TensorHeader

FLOATING = ("float32", "bfloat16", "float16", "float64")
MOST_LINES = 20


def tensor_problems(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorHeader]) -> list[str]:
    """A line for each tensor that is missing, unexpected, misshapen or not floating; at most 20 of each kind."""
    missing = [f"tensor {name} {_sizes(shape)} is missing" for name, shape in expected.items() if name not in found]
    unexpected = [
        f"tensor {name} {_sizes(header.shape)} is unexpected: GPT-2 has no place for it"
        for name, header in found.items()
        if name not in expected
    ]
    both = [(name, shape, found[name]) for name, shape in expected.items() if name in found]
    misshapen = [
        f"tensor {name} has shape {_sizes(header.shape)}, expected {_sizes(shape)}"
        for name, shape, header in both
        if header.shape != shape
    ]
    types = [
        f"tensor {name} holds {header.dtype}, expected one of {', '.join(FLOATING)}"
        for name, _, header in both
        if header.dtype not in FLOATING
    ]
    return [line for lines in (missing, unexpected, misshapen, types) for line in _shortened(lines)]


def _sizes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more tensors of which the same is true"]
