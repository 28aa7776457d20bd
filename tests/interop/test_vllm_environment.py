"""The tests of the folder inside_vllm, in the environment that has vLLM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.run_programs import interpreter

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("program", ["test_server.py", "test_backend.py", "test_bench.py", "test_pipeline.py"])
def test_inside_the_vllm_environment(program: str) -> None:
    command = [str(interpreter("vllm")), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "600"]
    done = subprocess.run(
        [*command, f"tests/interop/inside_vllm/{program}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
