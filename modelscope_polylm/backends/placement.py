"""Where a model runs, in which precision, and whether it fits: names of devices, their defaults and their memory."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_polylm.errors import DeviceError, OptionError
from modelscope_polylm.network.config import PolyLMConfig

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
}
PROCESS_BYTES = 1_000_000_000
"""What a process takes beyond weights and cache: 1.00 GB on an H100 (benchmarks/RESULTS.md), less on a CPU."""
SMALL_MODEL = 50_000_000
"""Fewer parameters make a small model."""
CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Memory:
    """Memory that a model can be put into.

    Attributes:
        name: 'RAM', or a GPU as 'cuda:0 NVIDIA H100'.
        total, free: bytes.
        dtype: the default precision of weights and cache there.
    """

    name: str
    total: int
    free: int
    dtype: str


def choose_device(name: str | int | torch.device | None) -> torch.device:
    """Return the device for a name such as 'gpu', 'cuda:1', 'gpu:0' or 'cpu'; None takes a GPU if there is one.

    A number alone is that of a GPU, as in transformers. On a host without CUDA, 'gpu' and 'cuda' without a number mean
    the CPU, as in ModelScope; that is logged.

    Raises:
        DeviceError: an unknown name, or a numbered GPU that this host does not have.
    """
    import torch

    text = "gpu" if name in (None, "") else str(name).strip().lower()
    found = re.fullmatch(r"(cpu|gpu|cuda)(?::(\d+))?", f"cuda:{text}" if text.isdecimal() else text)
    if found is None:
        raise DeviceError(f"Unknown device {name!r}: use 'cpu', 'gpu', 'cuda', or a numbered GPU such as 'cuda:1'.")
    kind, number = found.groups()
    if kind == "cpu":
        return torch.device("cpu")
    if number is None and not torch.cuda.is_available():
        # ModelScope asks for 'gpu' wherever nothing was asked for
        level = logging.INFO if name in (None, "gpu") else logging.WARNING
        logger.log(level, "Device %r: CUDA is not available on this host, using the CPU instead.", str(name))
        return torch.device("cpu")
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise DeviceError(f"Device {str(name)!r} does not exist: this host has {count} GPUs. Use 'gpu' or 'cpu'.")
    return torch.device("cuda", index)


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the precision of the weights: as asked for, otherwise bfloat16 on CUDA and float32 on the CPU.

    float16 warns: PolyLM was trained in bfloat16, and its activations overflow float16's range.

    Raises:
        OptionError: not one of bfloat16, float32, float16.
    """
    import torch

    if dtype is None or dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = DTYPES.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise OptionError(f"torch_dtype={dtype!r} is not supported: use 'bfloat16', 'float32' or 'float16'.")
    if known == "float16":
        warnings.warn(
            "float16 was asked for: PolyLM was trained in bfloat16 and overflows float16, which can make its answers "
            "worthless. Use bfloat16 on a GPU or float32 on the CPU.",
            UserWarning,
            stacklevel=3,
        )
    chosen: torch.dtype = getattr(torch, known)
    return chosen


def check_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Raise DeviceError for bfloat16 on a GPU that does not compute in it (compute capability below 8.0)."""
    import torch

    if dtype != torch.bfloat16 or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        card = f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}.{capability[1]})"
        raise DeviceError(
            f"{card} does not compute in bfloat16: load the model with torch_dtype='float32', which takes twice the "
            "memory, or on another device."
        )


def check_memory(
    config: PolyLMConfig, dtype: torch.dtype, device: torch.device, quantization: str | None = None
) -> None:
    """Raise DeviceError, before anything is loaded, for weights larger than the free memory; tells what would fit.

    A CPU's swap space counts as free. On a GPU what else a process takes, PROCESS_BYTES, has to fit, too.
    """
    from modelscope_polylm.network.weights import weight_bytes

    kind, size = quantization or str(dtype)[6:], weight_bytes(config, dtype.itemsize, quantization)
    if device.type == "cpu":
        free = _ram().free + _free_swap()
        if size > free:
            raise DeviceError(
                f"The weights take {size / 1e9:.1f} GB in {kind}, but {free / 1e9:.1f} GB of memory are free: "
                f"{_what_fits(config, dtype, free)}, or load them with torch_dtype='bfloat16', on a GPU, or with "
                "backend='transformers', device_map='auto' and an offload_folder."
            )
        return
    free = free_bytes(device)
    if size + PROCESS_BYTES > free:
        raise DeviceError(
            f"The weights take {size / 1e9:.1f} GB in {kind} and the work on them {PROCESS_BYTES / 1e9:.1f} GB, but "
            f"{device} has {free / 1e9:.1f} GB free: {_what_fits(config, dtype, free - PROCESS_BYTES)}."
        )


def _what_fits(config: PolyLMConfig, dtype: torch.dtype, room: int) -> str:
    from modelscope_polylm.network.quantization import QUANTIZATIONS
    from modelscope_polylm.network.weights import weight_bytes

    sizes = {name: weight_bytes(config, dtype.itemsize, name) for name in QUANTIZATIONS}
    fitting = [f"quantization={name!r} ({size / 1e9:.1f} GB)" for name, size in sizes.items() if size <= room]
    return f"load them with {' or '.join(fitting)}" if fitting else "no quantization fits either; free memory"


def memories() -> list[Memory]:
    """List the RAM, within a container's limit, and every GPU."""
    return [_ram(), *_gpus()]


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, for a CPU that of the host; no other device is touched."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _ram().free


def _ram() -> Memory:
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    limit = min([memory.total, *_container_limits()])
    return Memory("RAM", limit, min(memory.available, limit), "float32")


def _free_swap() -> int:
    """Bytes of swap space; 0 in a container with a limit, which may have none of it."""
    import psutil

    is_limited = _ram().total < psutil.virtual_memory().total
    return 0 if is_limited else int(psutil.swap_memory().free)


def _container_limits() -> Iterator[int]:
    for name in CGROUP_FILES:
        try:
            yield int(Path(name).read_text())
        except (OSError, ValueError):  # not Linux, or 'max'
            continue


def _gpus() -> Iterator[Memory]:
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield Memory(f"cuda:{index} {torch.cuda.get_device_name(index)}", total, free, "bfloat16")


def limit_threads(config: PolyLMConfig, device: torch.device) -> None:
    """Run a small model on a CPU in one thread, unless OMP_NUM_THREADS says otherwise.

    Its operations are so short that threads bring little where cores are free, and wait for each other where they are
    not: twenty times slower with two threads on two busy cores.
    """
    import torch

    if config.parameters < SMALL_MODEL and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
