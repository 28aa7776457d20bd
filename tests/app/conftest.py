"""Runs the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from modelscope_polylm.app.cli import app


class Outcome(NamedTuple):
    """What a command did."""

    exit_code: int
    output: str
    errors: str


@pytest.fixture
def polylm() -> Callable[..., Outcome]:
    """Runs `polylm` with arguments, and bytes on stdin."""

    def run(*arguments: str, stdin: bytes = b"") -> Outcome:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run
