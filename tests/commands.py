"""Fixtures that run the command line in this process; the rooms of commands import them in their conftest.py."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from modelscope_polylm.__main__ import app
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER


class Outcome(NamedTuple):
    """What a command did."""

    exit_code: int
    output: str
    errors: str


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A command sets what a process of its own needs; here it is taken back."""
    before, show, threads = dict(os.environ), warnings.showwarning, torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)
    warnings.showwarning = show


@pytest.fixture
def polylm() -> Callable[..., Outcome]:
    """Runs `polylm` with arguments, and bytes on stdin."""

    def run(*arguments: str, stdin: bytes = b"") -> Outcome:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def tiny() -> TextGenerator:
    """The bundled model on the CPU."""
    return TextGenerator.load(TINY_FOLDER, device="cpu")
