"""The output: complete records, only ever appended, so that a run which was killed can go on after them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from modelscope_polylm.cli.batch.records import RecordFormat, StoredRecords
from modelscope_polylm.errors import OptionError, PolyLMError
from modelscope_polylm.files import lock, read_own_json, write_atomically

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import TextGenerator

SMALL_FILES = ("config.json", "tokenizer.model")
WEIGHTS = (".safetensors", ".bin")
ADVICE = "give the same input and options to go on with it, choose another output, or pass --overwrite to begin again."

Settings = dict[str, Any]


def is_stream(path: Path) -> bool:
    """Whether the output is stdout, a pipe or a device: a run that writes there cannot be continued."""
    return str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir())


def check_output(path: Path, source: Path, overwrite: bool) -> None:
    """Raise OptionError for an output that cannot be written, is the input, or is of no run that could go on."""
    if is_stream(path):
        return
    if path.is_dir():
        raise OptionError(f"{path} is a folder: name a file.")
    if not path.parent.is_dir():
        raise OptionError(f"The folder {path.parent} does not exist: create it, or choose another output.")
    if not path.exists():
        return
    if source.exists() and path.samefile(source):
        raise OptionError(f"{path} is the input: choose another output.")
    if path.stat().st_size and not settings_file(path).exists() and not overwrite:
        raise OptionError(f"{path} exists and is of no earlier run: choose another output, or pass --overwrite.")


class OutputStream:
    """Writes to stdout, a pipe or a device.

    Attributes:
        written: records of this run.
        failed: how many of them hold an error.
    """

    def __init__(self, path: Path, format: RecordFormat) -> None:
        """Open it. Raises OptionError."""
        self._file = sys.stdout.buffer if str(path) == "-" else _opened(path, "wb")
        self._format = format
        self.written = self.failed = 0

    def append(self, records: Sequence[bytes]) -> None:
        """Write records. Raises OSError."""
        self._file.write((b"" if self.written else self._format.header) + b"".join(records))
        self._file.flush()
        self.written += len(records)
        self.failed += sum(map(self._format.is_error, records))

    def close(self) -> None:
        """Nothing is left to do."""


class OutputFile:
    """Appends to a file that one process writes at a time.

    Attributes:
        path: the file.
        written: how many complete records it has.
        failed: how many of them hold an error.
    """

    def __init__(self, path: Path, format: StoredRecords, overwrite: bool = False) -> None:
        """Open or create it; cut off a last record that is not complete.

        Raises:
            OptionError: it cannot be written, another process writes it, or its records are not those of a batch.
        """
        self.path, self._format = path, format
        self._file = _opened(path, "r+b" if path.exists() else "x+b")
        try:
            lock(self._file.fileno(), when_held=self._refuse)
            if overwrite:
                self._file.truncate(0)
            self.count()
        except BaseException:
            self._file.close()
            raise

    def append(self, records: Sequence[bytes]) -> None:
        """Write records and make sure that they are on disk.

        Raises:
            PolyLMError: the disk is full or failing; what was written before stays.
        """
        header = b"" if self._file.tell() else self._format.header
        try:
            self._file.write(header + b"".join(records))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with open(self.path, "rb") as file:  # the failed one would try to write again
                self._read_records(file)
            raise PolyLMError(
                f"{self.path} cannot be written: {error.strerror}. {self.written} lines are complete; when there is "
                "space, the same command goes on after them."
            ) from error
        self.written += len(records)
        self.failed += sum(map(self._format.is_error, records))

    def count(self) -> None:
        """Count the complete records, and cut off what comes after them. Raises OptionError for other lines."""
        self._file.seek(0)
        end = self._read_records(self._file)
        if self._file.seek(0, os.SEEK_END) > end:
            self._file.truncate(end)
            self._file.seek(end)

    def close(self) -> None:
        """Close the file, which also lets other processes write it."""
        try:
            self._file.close()
        except OSError:  # a full disk was reported by append; closing tries the same bytes again
            return

    def _read_records(self, file: BinaryIO) -> int:
        """Count the complete records; returns where they end."""
        self.written = self.failed = 0
        header = self._format.header
        start = file.read(len(header))
        if start != header:
            if not header.startswith(start):
                raise self._changed(0)
            return 0
        end = len(header)
        for record in self._format.records(file):
            if not record.endswith(b"\n"):
                break
            if not self._format.is_record(record, self.written + 1):
                raise self._changed(self.written + 1)
            self.failed += self._format.is_error(record)
            self.written, end = self.written + 1, end + len(record)
        return end

    def _changed(self, line: int) -> OptionError:
        return OptionError(
            f"{self.path} was changed: its line {line} is not what a batch wrote there. Choose another output, or pass "
            "--overwrite to begin again."
        )

    def _refuse(self) -> None:
        raise OptionError(f"Another run is writing {self.path}: wait for its end, or choose another output.")


def _opened(path: Path, mode: str) -> BinaryIO:
    try:
        return open(path, mode)  # type: ignore[return-value]  # the modes are binary
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}.") from error


def settings_file(output: Path) -> Path:
    """The file next to the output that holds the settings of its run."""
    return output.with_name(f"{output.name}.run.json")


def model_settings(generator: TextGenerator, options: GenerationOptions) -> Settings:
    """What the answers depend on besides the input: the model, how it runs, all options in force."""
    values = dataclasses.asdict(options)
    prompt_format, adapter = generator.snapshot.prompt_format, generator.snapshot.adapter
    settings = {
        "model": _model_mark(generator.snapshot.folder),
        "prompt_format": prompt_format.name if prompt_format else None,
        "adapter": adapter.digest() if adapter else None,
    }
    running = {"backend": generator.backend.name, "dtype": str(generator.backend.dtype).removeprefix("torch.")}
    plain: Settings = json.loads(json.dumps({**settings, **running, **values}, default=repr))
    return plain


def check_or_write(output: Path, settings: Settings, begun: bool) -> None:
    """Keep the settings of a new run; make sure that a run that goes on has the same ones.

    Args:
        output: the run's output.
        settings: of this run.
        begun: whether the output has records already.

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
            raise OptionError(f"{output} belongs to another run ({changes}): {ADVICE}")
        return
    try:
        write_atomically(file, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise PolyLMError(f"{file} cannot be written: {error.strerror}.") from error


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name in ("input", "model"):
        return f"the {name} is another one"
    return f"{name} was {before.get(name)!r}, now {now.get(name)!r}"


def _read(file: Path, output: Path) -> Settings:
    settings = read_own_json(file)
    if settings is None:
        raise OptionError(f"{output} exists, but {file.name}, which says how it was made, does not: {ADVICE}")
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
