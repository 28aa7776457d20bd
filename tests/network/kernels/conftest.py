"""Runs the kernel tests under Triton's interpreter on a CPU, and under `-m gpu` on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from modelscope_polylm.network.kernels.dispatch import kernel_settings, triton_available, use_interpreter

# one process can either interpret kernels or compile them
INTERPRETED = not torch.cuda.is_available() and use_interpreter()


def sum_products_in_double() -> None:
    """Give an element of an interpreted `tl.dot` the same bits in tiles of every shape, as matrix units do.

    The product of NumPy's library does so on some CPUs (with AVX-512), and not on others (with AVX2).
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        total = np.matmul(a.data, b.data, dtype=np.float64) + d.data
        return TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


if INTERPRETED:
    sum_products_in_double()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the kernels run; the references give the expected values."""
    if not triton_available():
        pytest.skip("triton is not installed")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("this process compiles kernels; test_interpreter.py runs them in another one")
    torch.manual_seed(0)
    with kernel_settings("triton"):
        yield torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Dtypes that the interpreter computes rightly; on a device bf16 goes through the same code as fp16."""
    return request.param


@pytest.fixture
def tolerance(dtype: torch.dtype) -> float:
    """Largest relative error (norms) of a kernel in that dtype."""
    return 2e-6 if dtype == torch.float32 else 1e-3
