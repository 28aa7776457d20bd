"""Which implementation runs: Triton kernels or their references in plain torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelscope_polylm.errors import DeviceError, OptionError

MODES = ("auto", "torch", "triton")
COUNTERS = 1 << 16


@dataclass
class KernelSettings:
    """How kernels are chosen and launched.

    mode: 'auto' takes Triton on CUDA, 'torch' always takes the reference, 'triton' takes the kernels on any device (on
        a CPU only under Triton's interpreter). The environment variable POLYLM_KERNELS sets the first value.
    overlap: launch each kernel while the one before it ends (programmatic dependent launch, compute capability 9.0
        and later).
    deterministic: no bit of a row's result depends on the number of rows (compute capability 9.0). False takes what is
        faster and sums in another order: multiply-adds for 1 and 2 rows of 16 bits, and the library's own cuts of
        fp32 and of mlp.c_proj for many rows.
    """

    mode: str = "auto"
    overlap: bool = True
    deterministic: bool = False


def _initial_settings() -> KernelSettings:
    mode = os.environ.get("POLYLM_KERNELS", "auto")
    if mode not in MODES:
        raise OptionError(f"POLYLM_KERNELS={mode!r} is not a kernel mode: set it to one of {', '.join(MODES)}.")
    return KernelSettings(mode)


settings = _initial_settings()


@contextmanager
def kernel_settings(
    mode: str | None = None, overlap: bool | None = None, deterministic: bool | None = None
) -> Iterator[None]:
    """Change settings of the kernels inside a `with` block; None keeps one as it is."""
    if mode is not None and mode not in MODES:
        raise OptionError(f"{mode!r} is not a kernel mode: choose one of {', '.join(MODES)}.")
    before = dict(vars(settings))
    changes = {"mode": mode, "overlap": overlap, "deterministic": deterministic}
    vars(settings).update({name: value for name, value in changes.items() if value is not None})
    try:
        yield
    finally:
        vars(settings).update(before)


@functools.cache
def triton_available() -> bool:
    """Whether Triton can be imported; it is not imported here."""
    return importlib.util.find_spec("triton") is not None


def uses_triton(*tensors: Tensor) -> bool:
    """Whether the kernels run on these tensors: the mode, the device and the layout must allow it."""
    if settings.mode == "torch" or not triton_available():
        return False
    return all((tensor.is_cuda or settings.mode == "triton") and tensor.is_contiguous() for tensor in tensors)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of streaming multiprocessors; 4 on a CPU, where only the interpreter asks."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have: 227 KiB on an H100, 99 KiB on a GeForce, no limit on a CPU."""
    if device.type != "cuda":
        return sys.maxsize
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))


@functools.cache
def _supports_overlap(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def overlaps(device: torch.device) -> bool:
    """Whether kernels on this device are launched with programmatic dependent launch."""
    return settings.overlap and _supports_overlap(device)


@functools.cache
def counters(device: torch.device) -> Tensor:
    """[COUNTERS] int32 zeros shared by all kernels of a device, which reset them to zero.

    Kernels of one device must therefore run in one order: on one stream, or on streams that wait for each other.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise DeviceError(
            "The kernels' counters were asked for during a graph capture: run the step once before capturing it."
        )
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


def use_interpreter() -> bool:
    """Makes kernels run on the CPU; False where Triton is missing or was imported for a real device before."""
    if not triton_available() or ("triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"):
        return False
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    if patch.__name__ == "_patch_lang_tensor":
        interpreter._patch_lang_tensor = _with_index(patch)
    return True


def _with_index(patch: Any) -> Any:
    """Loop bounds from tensors, which Triton before 3.9 cannot read with numpy 2.4 and later."""

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched
