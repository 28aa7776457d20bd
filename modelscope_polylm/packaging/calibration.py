"""Projections in fewer bits, whose errors the remaining weights make good: GPTQ, layer by layer over a text.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323:
the inputs of a projection are rounded one after the other, and what each rounding changes of the outputs is taken back
by those that are not yet rounded. Every projection sees the inputs that the quantised ones before it compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.quantization import (
    FORMATS,
    GROUP,
    SCALE_DTYPE,
    QuantizedMatrix,
    dequantize,
    pack,
)

DAMPING = 0.01
"""Share of the mean squared input that is added to each (paper, section 3.3)."""
MOST_DAMPING = 1.0

Inputs = Callable[[Tensor], Tensor]
"""From the residual stream [tokens, hidden_size] of a text to what a projection gets of it [tokens, inputs]."""


class Calibration:
    """A network that runs over texts while its projections are quantised, from the first layer to the last.

    Args:
        config: sizes of the network.
        embeddings: [tokens, hidden_size] of each text, positions included.
        quantization: 'int4' or 'int8'.
        device: where it runs, in fp32.
    """

    def __init__(self, config: PolyLMConfig, embeddings: Sequence[Tensor], quantization: str, device: torch.device):
        self._config, self._quantization, self._device = config, quantization, device
        self._residuals = [each.to(device, torch.float32) for each in embeddings]

    def layer(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, QuantizedMatrix]]:
        """Quantise the projections of the next layer, in the order in which they run.

        Args:
            weights: of this layer, by names such as 'attn.c_attn.weight'; projections are [out, in].

        Yields:
            The name of each projection's weight, and the matrix, on the device.
        """
        own = {name: tensor.to(self._device, torch.float32) for name, tensor in weights.items()}
        for part, norm, first, inner in (
            ("attn", "ln_1", "attn.c_attn", self._attention),
            ("mlp", "ln_2", "mlp.c_fc", _gelu),
        ):
            normed = self._norm(own, norm)
            expansion = self._quantized(own, first, normed)
            yield f"{first}.weight", expansion
            hidden = _after(normed, dequantize(expansion, torch.float32), own[f"{first}.bias"], inner)
            last = f"{part}.c_proj"
            reduction = self._quantized(own, last, hidden)
            yield f"{last}.weight", reduction
            product, bias = dequantize(reduction, torch.float32), own[f"{last}.bias"]
            for residual in self._residuals:
                residual += F.linear(hidden(residual), product, bias)

    def _norm(self, own: Mapping[str, Tensor], name: str) -> Inputs:
        shape = (self._config.hidden_size,)
        weight, bias = own[f"{name}.weight"], own[f"{name}.bias"]
        return lambda residual: F.layer_norm(residual, shape, weight, bias, self._config.epsilon)

    def _attention(self, qkv: Tensor) -> Tensor:
        # qkv: [tokens, 3 * hidden_size] -> [tokens, hidden_size]
        query, key, value = qkv.unflatten(1, (3, self._config.heads, -1)).permute(1, 2, 0, 3)
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True)
        return mixed[0].transpose(0, 1).flatten(1)

    def _quantized(self, own: Mapping[str, Tensor], name: str, inputs: Inputs) -> QuantizedMatrix:
        weight = own[f"{name}.weight"]
        squares = torch.zeros(weight.shape[1], weight.shape[1], device=self._device)
        for residual in self._residuals:
            each = inputs(residual)
            squares.addmm_(each.t(), each)
        return compensated(weight, squares, self._quantization)


def _after(inputs: Inputs, weight: Tensor, bias: Tensor, function: Callable[[Tensor], Tensor]) -> Inputs:
    """What a projection's outputs become by a function."""
    return lambda residual: function(F.linear(inputs(residual), weight, bias))


def _gelu(hidden: Tensor) -> Tensor:
    return F.gelu(hidden, approximate="tanh")


def compensated(weight: Tensor, squares: Tensor, quantization: str) -> QuantizedMatrix:
    """Quantise a matrix so that its products with given inputs change little.

    Args:
        weight: [outputs, inputs] fp32; is overwritten.
        squares: [inputs, inputs] fp32, the sum of x x^T over the inputs x; is overwritten.
        quantization: 'int4' or 'int8'.

    Raises:
        PolyLMError: inputs that are not finite.
    """
    # weight: [N, K], squares: [K, K]
    kind, (outputs, inputs) = FORMATS[quantization], weight.shape
    factor, bounds = _inverse_factor(squares), (-(1 << (kind.bits - 1)), (1 << (kind.bits - 1)) - 1)
    integers = torch.empty(outputs, inputs, dtype=torch.int8, device=weight.device)
    scales = torch.empty(kind.groups(inputs), outputs, dtype=SCALE_DTYPE, device=weight.device)
    for group, start in enumerate(range(0, inputs, GROUP)):
        end = min(start + GROUP, inputs)
        _, chosen = kind.choose(weight[:, start:end].clone())
        scales[group] = chosen[:, 0].to(SCALE_DTYPE)
        own = slice(start, end)
        errors = _round_group(weight[:, own], chosen[:, 0], factor[own, own], integers[:, own], bounds)
        weight[:, end:] -= errors @ factor[start:end, end:]
    return QuantizedMatrix(pack(integers, kind.bits), scales, quantization, inputs, torch.float32)


def _round_group(weight: Tensor, scale: Tensor, factor: Tensor, integers: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Round the inputs of a group one after the other; returns what later groups are to make good."""
    # weight: [N, G], changed, scale: [N], factor: [G, G], integers: [N, G], written -> [N, G]
    errors = torch.empty_like(weight)
    for column in range(weight.shape[1]):
        exact = weight[:, column]
        rounded = (exact / scale).round_().clamp_(*bounds)
        integers[:, column] = rounded.to(torch.int8)
        errors[:, column] = (exact - rounded * scale) / factor[column, column]
        weight[:, column + 1 :] -= errors[:, column, None] * factor[column, column + 1 :]
    return errors


def _inverse_factor(squares: Tensor) -> Tensor:
    """The upper Cholesky factor [inputs, inputs] of the inverse of the damped squares."""
    # squares: [K, K], changed -> [K, K]
    diagonal = squares.diagonal()
    mean, share = diagonal.mean(), DAMPING
    diagonal[diagonal == 0] = mean if mean > 0 else 1.0  # an input that never occurs is rounded for itself
    added = 0.0
    while share <= MOST_DAMPING:
        diagonal += (share - added) * mean
        added = share
        factor, failed = torch.linalg.cholesky_ex(squares)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return upper
        share *= 10
    raise PolyLMError(
        "The inputs of a projection are not finite or span too many orders of magnitude to calibrate: package with "
        "--method round, or calibrate on another text."
    )
