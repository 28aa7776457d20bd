"""What commands say and how they end: output for a terminal, a pipe or nobody; errors as one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import math
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from modelscope_polylm.errors import InputError, OptionError, PolyLMError

if TYPE_CHECKING:
    from rich.console import Console

NARROW = 60
"""Terminals with fewer columns get short forms."""
UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
FAILED, WRONG_INPUT, INTERRUPTED, READER_GONE = 1, 2, 130, 141
EXIT_CODES = """\b
Exit codes:
0    done
1    failed: model, device, download, disk
2    wrong option or input
130  stopped by Ctrl-C
141  the output's reader went away
"""
"""The last two are what shells report of a process that a signal ended."""

_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)


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


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option `--debug`: without it an error becomes one line on stderr and an exit code."""

    @functools.wraps(command)
    def run(*, debug: bool, **arguments: Any) -> None:
        _quieten()
        try:
            command(**arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug and not isinstance(error, (BrokenPipeError, KeyboardInterrupt)):
                raise
            raise typer.Exit(print_error(error)) from None

    signature = inspect.signature(command, eval_str=True)
    return with_signature(run, signature.replace(parameters=[*signature.parameters.values(), _DEBUG]))


def print_error(error: BaseException) -> int:
    """Say on stderr what happened, in one line; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        discard_output()
        return READER_GONE
    if isinstance(error, KeyboardInterrupt):
        write_error("Interrupted.")
        return INTERRUPTED
    write_error(f"Error: {' '.join(_message(error).split())}")
    if isinstance(error, OSError):
        discard_output()
    return WRONG_INPUT if isinstance(error, (InputError, OptionError)) else FAILED


def _message(error: BaseException) -> str:
    if isinstance(error, PolyLMError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be used: {error.strerror}."
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"The output cannot be written: {error.strerror}."
    first_line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first_line} (unexpected; --debug shows where it comes from)"


def with_signature(command: Callable[..., None], signature: inspect.Signature) -> Callable[..., None]:
    """The command, described by a signature that typer reads its options from."""
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def _quieten() -> None:
    # read when ModelScope and tqdm are imported
    os.environ.setdefault("MODELSCOPE_LOG_LEVEL", "40")
    if not is_terminal(sys.stderr):
        os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.showwarning = _show_warning  # type: ignore[assignment]


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):
        write_error(f"Warning: {' '.join(str(message).split())}")
