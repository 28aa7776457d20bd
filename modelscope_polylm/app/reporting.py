"""Errors for people: one line on stderr that says what to do, and an exit code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from modelscope_polylm.errors import InputError, OptionError, PolyLMError

WRONG_INPUT, FAILED = 2, 1

_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option `--debug`: without it a PolyLMError becomes one line on stderr and an exit code."""

    @functools.wraps(command)
    def run(*, debug: bool, **arguments: Any) -> None:
        try:
            command(**arguments)
        except PolyLMError as error:
            if debug:
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(exit_code(error)) from None

    signature = inspect.signature(command, eval_str=True)
    return with_signature(run, signature.replace(parameters=[*signature.parameters.values(), _DEBUG]))


def exit_code(error: PolyLMError) -> int:
    """2 where the caller's input or option is at fault, else 1."""
    return WRONG_INPUT if isinstance(error, (InputError, OptionError)) else FAILED


def with_signature(command: Callable[..., None], signature: inspect.Signature) -> Callable[..., None]:
    """The command, described by a signature that typer reads its options from."""
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command
