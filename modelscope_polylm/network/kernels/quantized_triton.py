"""Weights of 8 and 4 bits, unpacked in registers: tiles of products, and plain numbers (`network.quantization`).

Whole numbers of 8 bits and e4m3 numbers are exact in 16 bits, so the matrix units see weights without their scales, and
the sum over each group of inputs is scaled in fp32. Groups are summed one after the other, whatever the block shapes:
an output does not depend on the number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from modelscope_polylm.network.kernels.order_triton import admit_next, launch_options, wait_for_previous
from modelscope_polylm.network.quantization import BLOCK_WORDS, FORMATS, GROUP, QuantizedMatrix

if TYPE_CHECKING:
    from modelscope_polylm.network.kernels.configs import QuantizedConfig

WORDS = tl.constexpr(BLOCK_WORDS)
assert (BLOCK_WORDS, GROUP) == (64, 128), "the kernels compute with these numbers"
NUMBER_ROWS = 16
"""Rows of a matrix that a program turns into plain numbers."""

UNIT = tl.constexpr(2.0**-6)
"""What a whole number of 1 is in bf16; `quantized_tile` takes it out of the sums again."""


def _integers(bits: int, place: int) -> str:
    """PTX from two whole numbers at a place below 8 of both halves of v to two multiples of UNIT."""
    # a bf16 number below 2^-125 is its bits times 2^-133. The sign bit is inverted, so half of the range comes off
    half = 1 << (bits - 1 + place)
    mask, factor, less = 2 * half - (1 << place), (127 + 127 - place) << 7, 0xC000 if bits == 8 else 0xBE00
    return f"""
        lop3.b32 v, v, {mask << 16 | mask}, {half << 16 | half}, 0x6A;
        mov.b32 factor, {factor << 16 | factor};
        mov.b32 summand, {less << 16 | less};
        fma.rn.bf16x2 {{out}}, v, factor, summand;"""


FLOATS = """
        shl.b32 v, v, 8;
        shr.u32 n, v, 4;
        and.b32 n, n, 0x07F007F0;
        lop3.b32 v, v, 0x80008000, n, 0xEA;
        mov.b32 factor, 0x7B807B80;
        mov.b32 summand, 0x80008000;
        fma.rn.bf16x2 {out}, v, factor, summand;"""
"""PTX from two e4m3 numbers in the low bytes of v: exponent and mantissa go to the low end of bf16's, times 2^120."""


def _assembly(name: str) -> tl.constexpr:
    """PTX from two neighbouring words to the two bf16 numbers of each stream."""
    streams, bits = FORMATS[name].streams, FORMATS[name].bits
    lines = [".reg .b32 a, b, v, n, factor, summand;"]
    # a: the low halves of both words, b: the high ones
    lines += [f"prmt.b32 a, ${streams}, ${streams + 1}, 0x5410;", f"prmt.b32 b, ${streams}, ${streams + 1}, 0x7632;"]
    for stream in range(streams):
        half, place = divmod(stream * bits, 16)
        pair = FLOATS if name == "fp8" else _integers(bits, place % 8)
        lines += [f"shr.u32 v, {'ab'[half]}, {place // 8 * 8};", pair.format(out=f"${stream}")]
    return tl.constexpr("\n".join(["{", *lines, "}"]))


INT8_ASSEMBLY, FP8_ASSEMBLY, INT4_ASSEMBLY = (_assembly(name) for name in ("int8", "fp8", "int4"))


@triton.jit
def stream_numbers(words, STREAM: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    # words: [N, W] int32 -> [N, W] DTYPE, the weights of one stream without their scales
    if FORMAT == "fp8":
        # sign, exponent and mantissa at the places of fp32's, where an exponent is worth 2^120 less
        bits = ((words << (24 - 8 * STREAM)) >> 4) & -0x78100000
        numbers = bits.to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
    else:
        # 0x4B000000 is 2^23 in fp32, with a mantissa that counts ones; the sign bit is inverted
        BITS: tl.constexpr = 4 if FORMAT == "int4" else 8
        HALF: tl.constexpr = 1 << (BITS - 1)
        bits = ((words >> (BITS * STREAM)) & (2 * HALF - 1)) ^ (0x4B000000 + HALF)
        numbers = bits.to(tl.float32, bitcast=True) - (8388608 + HALF)
    return numbers.to(DTYPE)


@triton.jit
def unpack(words, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    # words: [N, W] int32 -> [N, W] DTYPE for each stream; bf16 in half the instructions that Triton would take
    if tl.bfloat16 == DTYPE:
        if FORMAT == "int4":
            return tl.inline_asm_elementwise(
                INT4_ASSEMBLY, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [words],
                (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
                 tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
        elif FORMAT == "fp8":
            return tl.inline_asm_elementwise(
                FP8_ASSEMBLY, "=r,=r,=r,=r,r,r", [words],
                (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                INT8_ASSEMBLY, "=r,=r,=r,=r,r,r", [words],
                (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
    elif FORMAT == "int4":
        return (
            stream_numbers(words, 0, FORMAT, DTYPE), stream_numbers(words, 1, FORMAT, DTYPE),
            stream_numbers(words, 2, FORMAT, DTYPE), stream_numbers(words, 3, FORMAT, DTYPE),
            stream_numbers(words, 4, FORMAT, DTYPE), stream_numbers(words, 5, FORMAT, DTYPE),
            stream_numbers(words, 6, FORMAT, DTYPE), stream_numbers(words, 7, FORMAT, DTYPE),
        )  # fmt: skip
    else:
        return (
            stream_numbers(words, 0, FORMAT, DTYPE), stream_numbers(words, 1, FORMAT, DTYPE),
            stream_numbers(words, 2, FORMAT, DTYPE), stream_numbers(words, 3, FORMAT, DTYPE),
        )  # fmt: skip


@triton.jit
def group_scale(scales, group, n, N, GROUPS: tl.constexpr):
    # scales: [GROUPS, N], n: [BLOCK_N] -> [BLOCK_N]; a group after the last holds no weights
    return tl.load(scales + tl.minimum(group, GROUPS - 1) * N + n)


@triton.jit
def block_scales(scales, block, n, N, GROUPS: tl.constexpr, COUNT: tl.constexpr):
    # -> [BLOCK_N] for each of the COUNT groups of a block, 1, 2 or 4
    group = block * COUNT
    if COUNT == 4:
        return (
            group_scale(scales, group, n, N, GROUPS), group_scale(scales, group + 1, n, N, GROUPS),
            group_scale(scales, group + 2, n, N, GROUPS), group_scale(scales, group + 3, n, N, GROUPS),
        )  # fmt: skip
    else:
        return (group_scale(scales, group, n, N, GROUPS), group_scale(scales, group + 1, n, N, GROUPS))


@triton.jit
def stream_inputs(x, row, first, R, K: tl.constexpr, INSIDE: tl.constexpr):
    # x: [R, K], row: [BLOCK_M, 1] -> [BLOCK_M, WORDS], 0 outside; INSIDE: no block ends after K
    k = first + tl.arange(0, WORDS)[None, :]
    inside = row < R if INSIDE else (row < R) & (k < K)
    return tl.load(x + row.to(tl.int64) * K + k, mask=inside, other=0.0)


@triton.jit
def quantized_tile(
    x, words, scales, first_row, first, part, R, N,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FORMAT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    # x: [R, K], words: descriptor of [N, W], in blocks of [BLOCK_N, WORDS], scales: [groups, N]
    # -> [BLOCK_M, BLOCK_N] fp32, rows from `first_row` and outputs from `first` on, over one of PARTS of the inputs
    STREAMS: tl.constexpr = 8 if FORMAT == "int4" else 4
    BLOCKS: tl.constexpr = (K + 64 * STREAMS - 1) // (64 * STREAMS)
    SHARE: tl.constexpr = (BLOCKS + PARTS - 1) // PARTS
    begin, end = part * SHARE, tl.minimum(part * SHARE + SHARE, BLOCKS)
    INSIDE: tl.constexpr = K % (64 * STREAMS) == 0
    n = tl.minimum(first + tl.arange(0, BLOCK_N), N - 1)
    row = first_row + tl.arange(0, BLOCK_M)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if FORMAT == "fp8":
        for block in range(begin, end):
            streams = unpack(words.load([first, block * WORDS]), FORMAT, x.dtype.element_ty)
            for i in tl.static_range(STREAMS):
                a = stream_inputs(x, row, (block * STREAMS + i) * WORDS, R, K, INSIDE)
                total = tl.dot(streams[i], tl.trans(a), total, input_precision="ieee")
        total *= tl.load(scales + n).to(tl.float32)[:, None]
    else:
        COUNT: tl.constexpr = 4 if FORMAT == "int4" else 2
        GROUPS: tl.constexpr = (K + 127) // 128
        own = block_scales(scales, begin, n, N, GROUPS, COUNT)
        for block in range(begin, end):
            # the next scales are on their way while these are used
            following = block_scales(scales, block + 1, n, N, GROUPS, COUNT)
            streams = unpack(words.load([first, block * WORDS]), FORMAT, x.dtype.element_ty)
            for group in tl.static_range(COUNT):
                summed = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
                for i in tl.static_range(2):
                    a = stream_inputs(x, row, (block * STREAMS + group * 2 + i) * WORDS, R, K, INSIDE)
                    summed = tl.dot(streams[group * 2 + i], tl.trans(a), summed, input_precision="ieee")
                # fused on purpose: the compiler's own choice might differ from kernel to kernel
                total = tl.fma(summed, tl.broadcast_to(own[group].to(tl.float32)[:, None], summed.shape), total)
            own = following
        if tl.bfloat16 == x.dtype.element_ty:
            total *= 1.0 / UNIT
    return tl.trans(total)


@triton.jit
def prefetch_words(
    words, first, part, N,
    K: tl.constexpr, BLOCK_N: tl.constexpr, FORMAT: tl.constexpr, PARTS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    # words: [N, W]; the first COUNT blocks that `quantized_tile` reads go to the L2 cache, 128 bytes at a time
    STREAMS: tl.constexpr = 8 if FORMAT == "int4" else 4
    BLOCKS: tl.constexpr = (K + 64 * STREAMS - 1) // (64 * STREAMS)
    SHARE: tl.constexpr = (BLOCKS + PARTS - 1) // PARTS
    n = tl.minimum(first + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)[:, None]
    line = part * SHARE * 2 + tl.arange(0, 2 * COUNT)[None, :]
    place = words + n * (BLOCKS * WORDS) + tl.minimum(line, BLOCKS * 2 - 1) * 32
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [place], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def numbers_kernel(
    words, scales, rows, out, COUNT, N,
    K: tl.constexpr, BLOCK_N: tl.constexpr, FORMAT: tl.constexpr, PICKED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # words: [N, W], scales: [groups, N], rows: [COUNT] if PICKED -> out: [COUNT, K], a block of inputs in a program
    STREAMS: tl.constexpr = 8 if FORMAT == "int4" else 4
    BLOCKS: tl.constexpr = (K + 64 * STREAMS - 1) // (64 * STREAMS)
    admit_next(OVERLAP)
    wait_for_previous(OVERLAP)
    target, block = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None], tl.program_id(1)
    exists = target < COUNT
    row = tl.load(rows + target, mask=exists, other=0).to(tl.int64) if PICKED else target.to(tl.int64)
    word = tl.load(words + (row * BLOCKS + block) * WORDS + tl.arange(0, WORDS)[None, :], mask=exists, other=0)
    for i in tl.static_range(STREAMS):
        first = (block * STREAMS + i) * WORDS
        k = first + tl.arange(0, WORDS)[None, :]
        group = 0 if FORMAT == "fp8" else tl.minimum(first // 128, (K - 1) // 128)
        scale = tl.load(scales + group * N + row, mask=exists, other=0.0).to(tl.float32)
        numbers = stream_numbers(word, i, FORMAT, tl.float32) * scale
        tl.store(out + target.to(tl.int64) * K + k, numbers, mask=exists & (k < K))


def quantized_operands(matrix: QuantizedMatrix, config: QuantizedConfig) -> tuple[TensorDescriptor, Tensor]:
    """What `quantized_tile` reads of a matrix; after its last row there are zeros."""
    return TensorDescriptor.from_tensor(matrix.words, [config.block_n, BLOCK_WORDS]), matrix.scales


def launch_numbers(matrix: QuantizedMatrix, rows: Tensor | None, out: Tensor) -> None:
    """Write the rows of a matrix, picked by `rows` [n] int64 or all, to out [n, inputs]."""
    # out: [n, K]
    blocks = matrix.words.shape[1] // BLOCK_WORDS
    options: dict[str, Any] = launch_options(out.device, warps=4)
    numbers_kernel[(triton.cdiv(len(out), NUMBER_ROWS), blocks)](
        matrix.words, matrix.scales, matrix.scales if rows is None else rows, out, len(out), len(matrix),
        K=matrix.inputs, BLOCK_N=NUMBER_ROWS, FORMAT=matrix.format, PICKED=rows is not None, **options,
    )  # fmt: skip
