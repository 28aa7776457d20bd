"""Runs one of this folder's programs in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.interop.environments import python_of

HERE = Path(__file__).parent


def interpreter(environment: str) -> Path:
    """The interpreter of an environment; skips the test where pip cannot get its packages."""
    try:
        return python_of(environment)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the environment {environment} cannot be made here: {error}")


def run_program(
    environment: str, program: str, *arguments: object, timeout: int = 600, python_path: str | Path = ""
) -> Any:
    """What the program prints as its last line, which is JSON; it imports from `python_path`, too."""
    command = [str(interpreter(environment)), str(HERE / program), *map(str, arguments)]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(python_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=timeout, cwd=HERE)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
