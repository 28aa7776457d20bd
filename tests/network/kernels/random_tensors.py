"""Random arguments and the error measure of the kernel tests."""

from __future__ import annotations

import torch
from torch import Tensor


def random(*size: int, dtype: torch.dtype = torch.float32, device: torch.device, scale: float = 1.0) -> Tensor:
    return (torch.randn(*size, dtype=torch.float32) * scale).to(device=device, dtype=dtype)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of `expected`, in float64."""
    assert torch.isfinite(value).all()
    return float((value.double() - expected.double()).norm() / expected.double().norm())
