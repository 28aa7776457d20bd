"""Where a tensor's bytes come from: a place in a file, or memory."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor

Fill = Callable[[int, Tensor], None]
"""Puts the bytes of a tensor from a position on into a buffer, [bytes]; several threads may call it at once."""


class OpenFiles:
    """Files that are read by position, each opened once."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def descriptor(self, path: Path) -> int:
        """Of the file, which stays open until `close`."""
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]

    def close(self) -> None:
        """Close all of them."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of a file.

    Attributes:
        tensor: on the CPU, mapped from the file where its format allows that.
        path, begin: the file and the position in it of the tensor's bytes; None where they do not stand in one piece.
    """

    tensor: Tensor
    path: Path | None = None
    begin: int = 0

    def filling(self, files: OpenFiles) -> Fill:
        """How chunks of its bytes get into buffers: from the file, which spares the page faults of a map."""
        if self.path is None or not hasattr(os, "preadv"):
            return functools.partial(_fill_from_memory, self.tensor.reshape(-1).view(torch.uint8))
        return functools.partial(_fill_from_file, files.descriptor(self.path), self.begin)

    def split(self, rows: int) -> Iterator[Source]:
        """Pieces of at most so many rows."""
        begin = self.begin
        for piece in self.tensor.split(rows):
            yield Source(piece, self.path, begin)
            begin += piece.nbytes


def _fill_from_memory(source: Tensor, start: int, buffer: Tensor) -> None:
    # source, buffer: [bytes]; torch's copy would start a team of threads in every reader
    numpy.copyto(buffer.numpy(), source[start : start + len(buffer)].numpy())


def _fill_from_file(descriptor: int, begin: int, start: int, buffer: Tensor) -> None:
    # buffer: [bytes]
    position, room = begin + start, buffer.numpy().data
    while room:
        count = os.preadv(descriptor, [room], position)
        if not count:
            raise OSError("A file of weights became shorter while it was read: do not write to a snapshot in use.")
        position, room = position + count, room[count:]
