from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelscope_polylm.network.kernels.dispatch import triton_available
from tests.network.kernels.conftest import INTERPRETED


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "chosen", [pytest.param("cpu and not fp16", id="fp32"), pytest.param("cpu", id="all", marks=pytest.mark.slow)]
)
@pytest.mark.skipif(not triton_available(), reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this process interprets kernels itself")
def test_kernels_under_the_interpreter_in_a_process_of_their_own(chosen: str) -> None:
    root = Path(__file__).parents[3]
    tested = ["tests/network/kernels", "tests/generation/test_beam_step.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # those that take the fixture `device`; the others have run in this process
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not gpu and not slow", "-k", chosen]
    command = [sys.executable, "-m", "pytest", *options, *tested]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stdout[-4000:]
    assert "skipped" not in result.stdout.splitlines()[-1]
