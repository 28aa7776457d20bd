"""Weights of 8 and 4 bits next to the products: which of them kernels read as they are, and plain numbers of the rest.

Up to `MAX_QUANTIZED_ROWS` rows a product unpacks the weights in registers. For more rows, and where no kernel runs, a
layer is turned into plain numbers first, which only exist while its product runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.network.kernels.configs import takes_quantized
from modelscope_polylm.network.kernels.dispatch import uses_triton
from modelscope_polylm.network.quantization import QuantizedMatrix, Weight, dequantize, dequantize_rows


def operand(x: Tensor, weight: Weight, *others: Tensor) -> Weight:
    """What a product of x [rows, inputs] reads: a quantised matrix where a kernel unpacks it, else plain numbers."""
    # x: [R, K]; addresses of whole 16 bytes
    if isinstance(weight, Tensor):
        return weight
    fits = len(x) > 0 and x.shape[1] % 16 == 0 and x.dtype == weight.dtype and takes_quantized(len(x))
    return weight if fits and uses_triton(x, weight.words, weight.scales, *others) else plain(weight)


def plain(weight: Weight) -> Tensor:
    """The matrix [outputs, inputs] in the dtype of its products; a tensor as it is."""
    # -> [N, K]
    if isinstance(weight, Tensor):
        return weight
    if not uses_triton(weight.words, weight.scales):
        return dequantize(weight)
    return _numbers(weight, None, len(weight), weight.dtype)


def embedding_rows(embedding: Weight, tokens: Tensor) -> Tensor:
    """The rows of some tokens [n] int64: [n, hidden_size] fp32."""
    # embedding: [V, D], tokens: [n] -> [n, D]
    if isinstance(embedding, Tensor):
        return embedding[tokens].float()
    if len(tokens) == 0 or not uses_triton(embedding.words, embedding.scales, tokens):
        return dequantize_rows(embedding, tokens)
    return _numbers(embedding, tokens, len(tokens), torch.float32)


def _numbers(matrix: QuantizedMatrix, rows: Tensor | None, count: int, dtype: torch.dtype) -> Tensor:
    # rows: [n] -> [n, K]
    from modelscope_polylm.network.kernels.quantized_triton import launch_numbers

    out = torch.empty(count, matrix.inputs, dtype=dtype, device=matrix.device)
    with torch.cuda.device_of(matrix.words):
        launch_numbers(matrix, rows, out)
    return out
