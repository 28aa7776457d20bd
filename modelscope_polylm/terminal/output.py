"""What the other side of stdout and stderr is: a person at a terminal, a pipe, or nobody any more."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

NARROW = 60
"""Terminals with fewer columns get short forms."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sees what is written to the stream."""
    return stream is not None and not stream.closed and stream.isatty()


def write(text: str) -> None:
    """Write to stdout at once; on a terminal without characters that would control it."""
    if sys.stdout is not None:
        sys.stdout.write(printable(text) if is_terminal(sys.stdout) else text)
        sys.stdout.flush()


def write_error(text: str) -> None:
    """Write a line to stderr, if anybody is still there to read it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """The text with U+FFFD for control characters such as escape, which a model may generate byte by byte."""
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(each) == "Cc" and each not in "\n\t" else each for each in text)


def json_line(value: Any) -> str:
    """One line of JSON that every reader accepts.

    A number that JSON cannot express, such as NaN, becomes null, and a date or the like its text.
    """
    return json.dumps(_expressible(value), ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _expressible(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expressible(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expressible(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def console(stderr: bool = False) -> Console:
    """rich's console: no colour where there is no terminal or NO_COLOR is set, and nothing is guessed from the text."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal's stderr that something takes its time; elsewhere nothing."""
    if not is_terminal(sys.stderr):
        yield
        return
    with console(stderr=True).status(text):
        yield


def choose_encodings() -> None:
    """Let no character get lost: what is not a terminal and lacks some gets UTF-8, and a terminal their escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            if not (is_terminal(stream) or _has_all_characters(stream.encoding)):
                stream.reconfigure(encoding="utf-8")
            stream.reconfigure(errors="backslashreplace")


def _has_all_characters(encoding: str) -> bool:
    """Whether an encoding has a form for every character, as UTF-8, UTF-16 and GB 18030 have."""
    try:
        return bool("é北\U0001f600".encode(encoding))
    except (LookupError, UnicodeEncodeError):
        return False


def discard_output() -> None:
    """Send what is still buffered for a reader that went away to nowhere, so that Python's exit does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
