from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelscope_polylm.network.kernels.dispatch import triton_available

CAPABILITIES = (90, 80, 86, 89, 120, 75)
"""Those that `compile_for_cards` knows."""


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.skipif(not triton_available(), reason="triton is not installed")
def test_kernels_compile_and_fit_on_cards_that_are_not_here(capability, tmp_path):
    program = "tests.network.kernels.compile_for_cards"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-m", program, str(capability)],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "kernels compiled" in result.stdout
