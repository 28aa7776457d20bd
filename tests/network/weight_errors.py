"""Relative errors of rounded weights, for the documentation."""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_polylm.network.quantization import FORMATS, dequantize, quantize

OUTPUTS, INPUTS = 256, 5120


def samples() -> dict[str, Tensor]:
    """Weights [OUTPUTS, INPUTS] fp32 by the name of their distribution."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, OUTPUTS, INPUTS, generator=generator)
    # Student's t with 3 degrees of freedom: a normal number over the root of the mean square of three others
    return {"normal": normal[0] * 0.02, "heavy tails": normal[0] / normal[1:].square().mean(0).sqrt() * 0.02}


def weight_errors() -> dict[str, dict[str, float]]:
    """For each format and distribution, the norm of the error over the norm of the weights."""
    found = samples()
    return {
        name: {
            kind: float((dequantize(quantize(weight, name)) - weight).norm() / weight.norm())
            for kind, weight in found.items()
        }
        for name in FORMATS
    }
