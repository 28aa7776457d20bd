"""A device whose streams run late, on the CPU: what is not waited for is not there yet, or is overwritten meanwhile."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

_present = threading.local()


class Stream:
    """Runs what it is given one after the other, each at most `latest` seconds later."""

    def __init__(self, device: Any = None, latest: float = 2e-3) -> None:
        self._latest = latest
        self._work: queue.Queue[Callable[[], object]] = queue.Queue()
        self._delays = random.Random(0)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._work.get()
            time.sleep(self._delays.random() * self._latest)
            work()

    def add(self, work: Callable[[], object]) -> None:
        self._work.put(work)

    def wait_event(self, event: Event) -> None:
        self.add(event.last.wait)

    def record_event(self) -> Event:
        event = Event()
        event.record(self)
        return event


class Event:
    """What was recorded last; one that was never recorded is over."""

    def __init__(self) -> None:
        self.last = threading.Event()
        self.last.set()

    def record(self, stream: Stream) -> None:
        self.last = threading.Event()
        stream.add(self.last.set)

    def synchronize(self) -> None:
        assert self.last.wait(30)


class DeviceTensor(torch.Tensor):
    """Memory of the device: it is written by the present stream, in its own time."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> Any:
        target = self.as_subclass(torch.Tensor)
        _present.stream.add(lambda: target.copy_(source))
        return self


def _set_stream(stream: Stream) -> None:
    _present.stream = stream


class LateTorch:
    """Stands for torch in a module: its CUDA is this device."""

    def __init__(self) -> None:
        self.main = Stream()
        self.memory: torch.Tensor | None = None
        self.cuda = SimpleNamespace(
            Stream=Stream,
            Event=Event,
            set_stream=_set_stream,
            current_stream=lambda device: self.main,
            synchronize=lambda device: None,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, size: Any, dtype: torch.dtype, device: Any = None, pin_memory: bool = False) -> torch.Tensor:
        """Memory of the host, or of the device: `memory` if it is set."""
        if pin_memory:
            return torch.full((size,), 7, dtype=dtype)
        made = torch.full(size, 7, dtype=dtype) if self.memory is None else self.memory
        return made.as_subclass(DeviceTensor)

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """What work on the present stream would see."""
        seen: queue.Queue[torch.Tensor] = queue.Queue()
        self.main.add(lambda: seen.put(tensor.as_subclass(torch.Tensor).clone()))
        return seen.get(timeout=30)
