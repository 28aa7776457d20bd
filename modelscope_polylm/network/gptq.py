"""GPTQ's files: how they hold a quantised projection, and the way from it to a `QuantizedMatrix` and back.

The format is version 1 of AutoGPTQ and GPTQModel, which transformers and vLLM read (`quant_method` 'gptq'): symmetric,
groups of 128 inputs in their order. A projection [in, out] consists of

- qweight [in * bits / 32, out] int32: each word holds the integers of inputs that follow each other, lowest bits first,
- scales [groups, out] of 16 bits,
- qzeros [groups, out * bits / 32] int32: the integer that means 0, less 1, packed along the outputs,
- g_idx [in] int32: the group of each input.

A weight is scale * (integer - zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.network.quantization import (
    FORMATS,
    GROUP,
    PIECE_ELEMENTS,
    SCALE_DTYPE,
    QuantizedMatrix,
    joined,
    pack,
    unpack,
)

PARTS = ("qweight", "qzeros", "scales", "g_idx")
INTEGER_PARTS = ("qweight", "qzeros", "g_idx")
WORD_BITS = 32


def part_shapes(name: str, outputs: int, inputs: int, quantization: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parts of a projection.

    Args:
        name: of the projection's weight, such as 'h.0.attn.c_attn.weight'.
        outputs, inputs: of the projection, multiples of 32 and of the group.
        quantization: 'int4' or 'int8'.
    """
    bits, groups = FORMATS[quantization].bits, FORMATS[quantization].groups(inputs)
    shapes = {
        "qweight": (inputs * bits // WORD_BITS, outputs),
        "qzeros": (groups, outputs * bits // WORD_BITS),
        "scales": (groups, outputs),
        "g_idx": (inputs,),
    }
    return {part_name(name, part): shape for part, shape in shapes.items()}


def part_name(name: str, part: str) -> str:
    """'h.0.attn.c_attn.weight' and 'scales' -> 'h.0.attn.c_attn.scales'."""
    return f"{name.removesuffix('weight')}{part}"


def projection_of(name: str) -> tuple[str, str | None]:
    """The name of the projection's weight, and the part that a tensor of a file is of it; None: it is no part."""
    module, _, part = name.rpartition(".")
    return (f"{module}.weight", part) if part in PARTS else (name, None)


def is_integer(name: str) -> bool:
    """Whether a tensor of a file holds integers."""
    return name.rpartition(".")[2] in INTEGER_PARTS


def quantization_config(quantization: str, method: str) -> dict[str, Any]:
    """The entry `quantization_config` of a config.json; `method` tells people how the integers were chosen."""
    return {
        "quant_method": "gptq",
        "bits": FORMATS[quantization].bits,
        "group_size": GROUP,
        "sym": True,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": ["modelscope_polylm"], "method": method},
    }


def from_parts(name: str, parts: Mapping[str, Tensor], quantization: str, dtype: torch.dtype) -> QuantizedMatrix:
    """The matrix that the parts of a projection hold, where they are.

    Args:
        name: of the projection, for errors.
        parts: by their names in PARTS, in the shapes of `part_shapes`.
        quantization: 'int4' or 'int8'.
        dtype: of the products.

    Raises:
        SnapshotError: inputs in another order than that of their groups, or another zero than the middle.
    """
    # qweight: [W, N], scales: [groups, N] -> [N, K]
    bits, inputs = FORMATS[quantization].bits, len(parts["g_idx"])
    if not torch.equal(parts["g_idx"], _group_indices(inputs, parts["g_idx"].device)):
        raise SnapshotError(
            f"{name}.g_idx orders the inputs otherwise than by their groups of {GROUP} (act-order): quantise with "
            "desc_act=False."
        )
    if not (parts["qzeros"] == _packed_zero(bits)).all():
        raise SnapshotError(f"{name}.qzeros has another zero than the middle of the integers: quantise with sym=True.")
    scales = parts["scales"] if parts["scales"].dtype.itemsize == 2 else parts["scales"].to(SCALE_DTYPE)
    count = max(1, PIECE_ELEMENTS // inputs)
    pieces = zip(parts["qweight"].split(count, 1), scales.split(count, 1), strict=True)
    return joined(
        [QuantizedMatrix(pack(_integers(words, bits), bits), own, quantization, inputs, dtype) for words, own in pieces]
    )


def to_parts(matrix: QuantizedMatrix) -> dict[str, Tensor]:
    """The parts, by their names in PARTS, that hold a matrix of the format 'int4' or 'int8'."""
    # matrix: [N, K]
    kind = FORMATS[matrix.format]
    words = _words(unpack(matrix.words, kind.bits, matrix.inputs), kind.bits)
    zeros = torch.full(
        (len(matrix.scales), len(matrix) * kind.bits // WORD_BITS), _packed_zero(kind.bits), dtype=torch.int32
    )
    indices = _group_indices(matrix.inputs, matrix.device)
    return {"qweight": words, "qzeros": zeros.to(matrix.device), "scales": matrix.scales, "g_idx": indices}


def _group_indices(inputs: int, device: torch.device) -> Tensor:
    # -> [K] int32
    return torch.arange(inputs, dtype=torch.int32, device=device) // GROUP


def _packed_zero(bits: int) -> int:
    """A word of zero points: each is the middle, less 1."""
    zero = (1 << (bits - 1)) - 1
    return sum(zero << shift for shift in range(0, WORD_BITS, bits))


def _integers(words: Tensor, bits: int) -> Tensor:
    # words: [W, N] int32 -> [N, K] int8, from -2 ** (bits - 1) on
    middle, mask = 1 << (bits - 1), (1 << bits) - 1
    streams = [((words >> shift & mask) - middle).to(torch.int8) for shift in range(0, WORD_BITS, bits)]
    return torch.stack(streams, 1).flatten(0, 1).t().contiguous()


def _words(integers: Tensor, bits: int) -> Tensor:
    # integers: [N, K] int8 -> [W, N] int32
    streams = (integers.t().int() + (1 << (bits - 1))).unflatten(0, (-1, WORD_BITS // bits))
    words = torch.zeros_like(streams[:, 0])
    for stream, shift in enumerate(range(0, WORD_BITS, bits)):
        words |= streams[:, stream] << shift
    return words.contiguous()
