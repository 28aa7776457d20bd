"""The output: complete JSON lines, only ever appended, so that a run which was killed can go on behind them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from modelscope_polylm.errors import OptionError, PolyLMError
from modelscope_polylm.files import lock, write_atomically
from modelscope_polylm.terminal.output import json_line

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import TextGenerator


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
            lock(self._file.fileno(), when_held=self._refuse)
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

    def _refuse(self) -> None:
        raise OptionError(f"Another run is writing {self.path}: wait for its end, or choose another output.")


def encoded(records: Sequence[Record]) -> bytes:
    """JSON lines in UTF-8; a lone surrogate from the input becomes its JSON escape."""
    return "".join(map(json_line, records)).encode(errors="backslashreplace")


def _opened(path: Path, mode: str) -> BinaryIO:
    try:
        return open(path, mode)  # type: ignore[return-value]  # the modes are binary
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}.") from error


Settings = dict[str, Any]
SMALL_FILES = ("config.json", "tokenizer.model")
WEIGHTS = (".safetensors", ".bin")


def settings_file(output: Path) -> Path:
    """The file beside the output that holds the settings of its run."""
    return output.with_name(f"{output.name}.run.json")


def model_settings(generator: TextGenerator, options: GenerationOptions) -> Settings:
    """What the answers depend on besides the input: the model, how it runs, all options in force."""
    values = dataclasses.asdict(options)
    settings = {"model": _model_mark(generator.snapshot.folder), "prompt_format": generator.snapshot.prompt_format.name}
    running = {"backend": generator.backend.name, "dtype": str(generator.backend.dtype).removeprefix("torch.")}
    plain: Settings = json.loads(json.dumps({**settings, **running, **values}, default=repr))
    return plain


def check_or_write(output: Path, settings: Settings, begun: bool) -> None:
    """Keep the settings of a new run; make sure that a run that goes on has the same ones.

    Args:
        output: the run's output.
        settings: of this run.
        begun: whether the output has lines already.

    Raises:
        OptionError: the output is of another run; says what differs.
        PolyLMError: the settings cannot be written.
    """
    file = settings_file(output)
    if begun:
        before = _read(file, output)
        differing = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
        if differing:
            changes = "; ".join(_change(name, before, settings) for name in differing)
            raise OptionError(f"{output} belongs to another run ({changes}): {_ADVICE}")
        return
    try:
        write_atomically(file, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise PolyLMError(f"{file} cannot be written: {error.strerror}.") from error


_ADVICE = "give the same input and options to go on with it, choose another output, or pass --overwrite to begin again."


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name in ("input", "model"):
        return f"the {name} is another one"
    return f"{name} was {before.get(name)!r}, now {now.get(name)!r}"


def _read(file: Path, output: Path) -> Settings:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise OptionError(f"{output} exists, but {file.name}, which says how it was made, does not: {_ADVICE}")
    return settings


def _model_mark(folder: Path) -> str:
    """Tells models apart without reading their weights: small files whole, of the weights names and sizes."""
    mark = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in SMALL_FILES:
            mark.update(path.read_bytes())
        elif path.suffix in WEIGHTS:
            mark.update(f"{path.name} {path.stat().st_size}\n".encode())
    return mark.hexdigest()
