from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelscope_polylm.network.kernels.dispatch import triton_available
from tests.network.kernels.conftest import INTERPRETED


@pytest.mark.skipif(not triton_available(), reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this process interprets kernels itself")
def test_kernels_under_the_interpreter_in_a_process_of_their_own():
    folder = Path(__file__).parent
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # those that take the fixture `device`; the others have run in this process
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not gpu and not slow", "-k", "cpu"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    result = subprocess.run(
        command, cwd=folder.parents[2], env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert "skipped" not in result.stdout.splitlines()[-1]
