"""The lowest versions of its dependencies that the package declares: the fast tests of many rooms pass on them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.environments import floors
from tests.interop.run_programs import interpreter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
ROOMS = (
    "text",
    "generation",
    "hub",
    "http",
    "serve",
    "translation",
    "plugin/test_text_pipeline.py",
    "cli/test_main.py",
)


def test_rooms_on_the_lowest_versions() -> None:
    python = interpreter("floors")
    names = [each.partition("==")[0] for each in floors()]
    code = "import importlib.metadata, sys; print(*map(importlib.metadata.version, sys.argv[1:]))"
    told = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.split()
    for each, version in zip(floors(), told, strict=True):
        wanted = each.partition("==")[2]
        assert version == wanted or version.startswith(f"{wanted}.")
    command = [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *(f"tests/{room}" for room in ROOMS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:]
