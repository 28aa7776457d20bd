"""The memory of this machine: what is there, and what is free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def memories() -> list[Memory]:
    """RAM, within a container's limit, and every GPU."""
    return [_ram(), *_gpus()]


def _ram() -> Memory:
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    limit = min([memory.total, *_container_limits()])
    return Memory("RAM", limit, min(memory.available, limit), "float32")


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
