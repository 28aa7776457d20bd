"""Weight matrices of 8 and 4 bits: how they are stored, and the way from a matrix to them and back.

The inputs of an output are cut into blocks of BLOCK_WORDS 32-bit words. Byte j (of 8 bits) or nibble j (of 4) of word i
holds input 64 * j + i of its block: so the bytes j of a block meet one contiguous part of x, and a kernel changes no
layout. After the last input there are zeros up to the end of the block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_WORDS = 64
"""Words of a block of one output: 256 inputs in 8 bits, 512 in 4."""
GROUP = 128
"""Inputs that share a scale, where one does not hold for all inputs of an output."""
SCALE_DTYPE = torch.bfloat16
"""Half of fp32's bytes and its range; weights are rounded to multiples of the scale as it is stored."""
PIECE_ELEMENTS = 1 << 23
"""Weights that are quantised at once: what is needed in between stays small."""
INT4_RATIOS = tuple(0.65 + 0.05 * step for step in range(8))
"""Scales of int4 that are tried, over the one with which the largest weight of a group is stored exactly."""


@dataclass(frozen=True)
class WeightFormat:
    """A way to store weights.

    Attributes:
        bits: of a weight.
        group: inputs that share a scale; None: all inputs of an output do.
        choose: weights [..., inputs] fp32 -> integers of `bits` bits in int8, and scales [..., 1] fp32.
    """

    bits: int
    group: int | None
    choose: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def streams(self) -> int:
        """Weights of a word."""
        return 32 // self.bits

    def bytes_of(self, outputs: int, inputs: int) -> int:
        """Bytes that a matrix takes with its scales."""
        return outputs * (4 * self.words(inputs) + self.groups(inputs) * SCALE_DTYPE.itemsize)

    def words(self, inputs: int) -> int:
        """Words of an output."""
        return -(-inputs // (self.streams * BLOCK_WORDS)) * BLOCK_WORDS

    def groups(self, inputs: int) -> int:
        """Scales of an output."""
        return 1 if self.group is None else -(-inputs // self.group)


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix [outputs, inputs] in fewer bits.

    Attributes:
        words: [outputs, blocks * BLOCK_WORDS] int32, see the module.
        scales: [groups, outputs] in 16 bits; a weight is its integer, or its e4m3 number, times the scale of its group.
        format: name in FORMATS.
        inputs: the length of a row.
        dtype: of the inputs and results of products.
    """

    words: Tensor
    scales: Tensor
    format: str
    inputs: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Of the matrix: outputs and inputs."""
        return torch.Size((len(self.words), self.inputs))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.words.device

    @property
    def is_cuda(self) -> bool:
        """Whether it is on a GPU."""
        return self.words.is_cuda

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.words.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.words)

    def part(self, first: int, count: int) -> QuantizedMatrix:
        """A view of `count` rows."""
        return dataclasses.replace(
            self, words=self.words[first : first + count], scales=self.scales[:, first : first + count]
        )


Weight = Tensor | QuantizedMatrix
"""A matrix of the network."""


def joined(parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of one format and width below each other."""
    if len(parts) == 1:
        return parts[0]
    words, scales = torch.cat([part.words for part in parts]), torch.cat([part.scales for part in parts], 1)
    return dataclasses.replace(parts[0], words=words, scales=scales)


def quantize(weight: Tensor, name: str, dtype: torch.dtype | None = None) -> QuantizedMatrix:
    """Round a matrix to a format, block of rows after block of rows.

    Args:
        weight: [outputs, inputs], finite, in any floating dtype.
        name: a format of FORMATS.
        dtype: of the products; None: that of the weight.
    """
    # weight: [N, K]
    pieces = weight.split(_rows_at_once(weight.shape[1]))
    return joined(
        [
            QuantizedMatrix(*_quantize_rows(piece, FORMATS[name]), name, weight.shape[1], dtype or weight.dtype)
            for piece in pieces
        ]
    )


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype | None = None) -> Tensor:
    """The matrix [outputs, inputs] in plain numbers; `dtype` None: that of its products."""
    # -> [N, K]
    whole = torch.empty(matrix.shape, dtype=dtype or matrix.dtype, device=matrix.device)
    count = _rows_at_once(matrix.inputs)
    for first in range(0, len(whole), count):
        part = matrix.part(first, count)
        whole[first : first + count] = _numbers(part.words, part.scales, matrix.format, matrix.inputs)
    return whole


def dequantize_rows(matrix: QuantizedMatrix, rows: Tensor) -> Tensor:
    """Some rows [n, inputs] fp32 of the matrix."""
    # rows: [n] -> [n, K]
    return _numbers(matrix.words[rows], matrix.scales[:, rows], matrix.format, matrix.inputs)


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers of `bits` bits, two's complement in int8 [outputs, inputs], as words [outputs, words] int32."""
    # values: [N, K] int8 -> [N, W] int32
    streams = 32 // bits
    blocks = -(-values.shape[1] // (streams * BLOCK_WORDS))
    padded = values.new_zeros(len(values), blocks * streams * BLOCK_WORDS)
    padded[:, : values.shape[1]] = values
    cut = padded.view(len(values), blocks, streams, BLOCK_WORDS)
    words = torch.zeros(len(values), blocks, BLOCK_WORDS, dtype=torch.int32, device=values.device)
    for stream in range(streams):
        words |= (cut[:, :, stream].int() & ((1 << bits) - 1)) << (bits * stream)
    return words.view(len(values), -1)


def unpack(words: Tensor, bits: int, inputs: int) -> Tensor:
    """The inverse of `pack`: integers [outputs, inputs] int8."""
    # words: [N, W] int32 -> [N, K] int8
    blocks = words.view(len(words), words.shape[1] // BLOCK_WORDS, BLOCK_WORDS)
    # shifted to the top and back, which extends the sign
    streams = [(blocks << (32 - bits * (stream + 1)) >> (32 - bits)).to(torch.int8) for stream in range(32 // bits)]
    return torch.stack(streams, 2).flatten(1)[:, :inputs]


def _rows_at_once(inputs: int) -> int:
    return max(1, PIECE_ELEMENTS // inputs)


def _quantize_rows(weight: Tensor, kind: WeightFormat) -> tuple[Tensor, Tensor]:
    # weight: [N, K] -> words: [N, W], scales: [groups, N]
    outputs, inputs = weight.shape
    group = kind.group or inputs
    padded = weight.new_zeros(outputs, kind.groups(inputs) * group, dtype=torch.float32)
    padded[:, :inputs] = weight
    values, scales = kind.choose(padded.view(outputs, -1, group))
    words = pack(values.flatten(1)[:, :inputs], kind.bits)
    return words, scales[..., 0].t().to(SCALE_DTYPE).contiguous()


def _numbers(words: Tensor, scales: Tensor, name: str, inputs: int) -> Tensor:
    # words: [N, W], scales: [groups, N] -> [N, K] fp32
    kind = FORMATS[name]
    values = unpack(words, kind.bits, inputs)
    numbers = values.contiguous().view(torch.float8_e4m3fn).float() if name == "fp8" else values.float()
    own = scales.t().float()
    return numbers * (own.repeat_interleave(kind.group, 1)[:, :inputs] if kind.group else own)


def _stored(scales: Tensor) -> Tensor:
    # as they will be read; a group of zeros has the scale 1
    rounded = scales.to(SCALE_DTYPE).float()
    return torch.where(rounded == 0, 1.0, rounded)


def _choose_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    # weight: [..., G] -> [..., G], [..., 1]
    scales = _stored(weight.abs().amax(-1, keepdim=True) / 127)
    return (weight / scales).round_().clamp_(-127, 127).to(torch.int8), scales


def _choose_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    # weight: [..., G] -> [..., G], [..., 1]
    largest = torch.finfo(torch.float8_e4m3fn).max
    scales = _stored(weight.abs().amax(-1, keepdim=True) / largest)
    return (weight / scales).clamp_(-largest, largest).to(torch.float8_e4m3fn).view(torch.int8), scales


def _choose_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    # weight: [..., G] -> [..., G], [..., 1]; the largest weight gets the integer -8, which has no positive counterpart
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    best = scales = torch.zeros_like(largest)
    unit = torch.where(largest == 0, 1.0, largest)  # no square leaves the range of fp32
    for ratio in INT4_RATIOS:
        tried = _stored(largest / -8 * ratio)
        error = ((_int4(weight, tried) * tried - weight) / unit).square_().sum(-1, keepdim=True)
        is_better = (error < best) | (scales == 0)
        best, scales = torch.where(is_better, error, best), torch.where(is_better, tried, scales)
    return _int4(weight, scales).to(torch.int8), scales


def _int4(weight: Tensor, scales: Tensor) -> Tensor:
    # weight: [..., G], scales: [..., 1] -> [..., G] fp32
    return (weight / scales).round_().clamp_(-8, 7)


FORMATS = {
    "int8": WeightFormat(8, GROUP, _choose_int8),
    "fp8": WeightFormat(8, None, _choose_fp8),
    "int4": WeightFormat(4, GROUP, _choose_int4),
}
"""By the name that people give: whole numbers of 8 bits, e4m3 numbers of 8 bits, whole numbers of 4 bits."""
QUANTIZATIONS = {"int8": ("int8", "int8"), "fp8": ("fp8", "fp8"), "int4": ("int4", "int8")}
"""By the name that people give: formats of the projections, and of the token embedding, which is the output layer."""
