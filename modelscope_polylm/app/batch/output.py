"""The output: complete JSON lines, only ever appended, so that a run which was killed can go on behind them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from modelscope_polylm.errors import OptionError, PolyLMError

Record = dict[str, Any]


def is_stream(path: Path) -> bool:
    """Whether the output is stdout, a pipe or a device: a run that writes there cannot be continued."""
    return str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir())


class OutputStream:
    """Writes to stdout, a pipe or a device."""

    written = 0

    def __init__(self, path: Path) -> None:
        """Open it. Raises OptionError."""
        self.path = path
        self._file = sys.stdout.buffer if str(path) == "-" else _opened(path, "wb")

    def append(self, records: Sequence[Record]) -> None:
        """Write records. Raises OSError."""
        self._file.write(encoded(records))
        self._file.flush()

    def close(self) -> None:
        """Nothing is left to do."""


class OutputFile:
    """Appends to a file that one process writes at a time.

    Attributes:
        path: the file.
        written: how many complete lines it has.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        """Open or create it; cut off a last line that is not complete.

        Raises:
            OptionError: it cannot be written, another process writes it, or its lines are not those of a batch.
        """
        self.path = path
        self._file = _opened(path, "r+b" if path.exists() else "x+b")
        try:
            self._lock()
            if overwrite:
                self._file.truncate(0)
            self.written, end = self._complete_lines()
            if self._file.seek(0, os.SEEK_END) > end:
                self._file.truncate(end)
                self._file.seek(end)
        except BaseException:
            self._file.close()
            raise

    def append(self, records: Sequence[Record]) -> None:
        """Write records and make sure that they are on disk.

        Raises:
            PolyLMError: the disk is full or failing; what was written before stays.
        """
        try:
            self._file.write(encoded(records))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise PolyLMError(
                f"{self.path} cannot be written: {error.strerror}. {self.written} lines are complete; when there is "
                "space, the same command goes on behind them."
            ) from error
        self.written += len(records)

    def close(self) -> None:
        """Close the file, which also lets other processes write it."""
        try:
            self._file.close()
        except OSError:  # a full disk was reported by append; closing tries the same bytes again
            return

    def _complete_lines(self) -> tuple[int, int]:
        """The number of complete lines and their bytes."""
        count = end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if not line.startswith(b'{"line": %d,' % (count + 1)):
                raise OptionError(
                    f"{self.path} was changed: its line {count + 1} is not what a batch wrote there. Choose another "
                    "output, or pass --overwrite to begin again."
                )
            count, end = count + 1, end + len(line)
        return count, end

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                f"Another run is writing {self.path}: wait for its end, or choose another output."
            ) from None


def encoded(records: Sequence[Record]) -> bytes:
    """JSON lines in UTF-8; a lone surrogate from the input becomes its JSON escape."""
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode(
        errors="backslashreplace"
    )


def _opened(path: Path, mode: str) -> BinaryIO:
    try:
        return open(path, mode)  # type: ignore[return-value]  # the modes are binary
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}.") from error
