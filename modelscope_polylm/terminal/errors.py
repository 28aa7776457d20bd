"""Errors for people: one line on stderr that says what to do, and an exit code."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from modelscope_polylm.errors import InputError, OptionError, PolyLMError
from modelscope_polylm.terminal.output import discard_output, is_terminal, write_error

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
