"""Rows of data files: JSON, JSON lines, CSV, parquet and plain text, also compressed by gzip, one row at a time."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from modelscope_polylm.errors import InputError, suggestion

BLOCK_CHARACTERS = 1 << 20
"""How much of a JSON array is read at once."""
WIDEST_CSV_FIELD = 1 << 27


def read_rows(path: str | Path) -> Iterator[Any]:
    """Yield the rows of a data file, or of all data files of a folder in the order of their names.

    Memory does not grow with the file. A line that is no JSON comes as its text, so that it can be counted.

    Args:
        path: a file that ends in one of SUFFIXES, with or without `.gz`, or a folder of such files.

    Yields:
        A dict for each row; of a text file `{'text': document}` for each block of lines between empty lines.

    Raises:
        InputError: the file does not exist, is cut off, is not UTF-8, or is of another kind.
    """
    for file in data_files(path):
        with _explained(file):
            yield from _READERS[_suffix(file)](file)


def data_files(path: str | Path) -> list[Path]:
    """The data files that a path stands for: itself, or those of a folder, sorted. Raises InputError for none."""
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in _READERS)
        if not files:
            raise InputError(f"{path} has no data file: it needs files that end in {', '.join(SUFFIXES)}.")
        return files
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a data file, or a folder of data files.")
    if _suffix(path) not in _READERS:
        raise InputError(f"{path} is of an unknown kind: {suggestion(_suffix(path), SUFFIXES, 'data files end in')}")
    return [path]


def _suffix(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is damaged or cut off ({error}): download it again.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}): convert it first.") from error
    except csv.Error as error:
        raise InputError(f"{file} is not CSV ({error}).") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error


def _open(file: Path) -> TextIO:
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open("r", encoding="utf-8-sig", newline="")


def _json_rows(file: Path) -> Iterator[Any]:
    with _open(file) as stream:
        start = stream.read(BLOCK_CHARACTERS).lstrip()
        yield from _array_items(start, stream, file) if start.startswith("[") else _line_items(start, stream)


def _line_items(start: str, stream: TextIO) -> Iterator[Any]:
    for line in itertools.chain((start + stream.readline()).split("\n"), stream):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield line.rstrip("\n")


def _array_items(start: str, stream: TextIO, file: Path) -> Iterator[Any]:
    """The items of a JSON array, each parsed as soon as it is complete."""
    decode = json.JSONDecoder().raw_decode
    text, position = start, 1
    while True:
        position = _after(text, position, " \t\r\n,")
        if text.startswith("]", position):
            return
        try:
            item, end = decode(text, position)
        except (ValueError, RecursionError) as error:
            # twice as much each time, so that a long item is not parsed over and over
            more = stream.read(max(BLOCK_CHARACTERS, len(text) - position))
            if not more:
                raise InputError(f"{file} is damaged or cut off ({error}): download it again.") from error
            text, position = text[position:] + more, 0
            continue
        yield item
        position = end


def _after(text: str, position: int, skipped: str) -> int:
    while position < len(text) and text[position] in skipped:
        position += 1
    return position


def _csv_rows(file: Path) -> Iterator[Any]:
    csv.field_size_limit(WIDEST_CSV_FIELD)
    with _open(file) as stream:
        yield from csv.DictReader(stream)


def _parquet_rows(file: Path) -> Iterator[Any]:
    import datasets

    try:
        yield from datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)
    except Exception as error:  # pyarrow and datasets have many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} is no complete parquet file ({reason}): download it again.") from error


def _text_rows(file: Path) -> Iterator[Any]:
    with _open(file) as stream:
        for is_text, lines in itertools.groupby(stream, key=lambda line: bool(line.strip())):
            if is_text:
                yield {"text": "".join(lines).replace("\r\n", "\n").rstrip("\n")}


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
SUFFIXES = tuple(_READERS)
