from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelscope_polylm.network.kernels.dispatch import triton_available

# compute capability, and KiB of shared memory of one program: H100 and H200, A100, GeForce 30, 40 and 50, T4
CARDS = {90: 227, 80: 163, 86: 99, 89: 99, 120: 99, 75: 64}


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("card", CARDS.items(), ids=map(str, CARDS))
@pytest.mark.skipif(not triton_available(), reason="triton is not installed")
def test_kernels_compile_and_fit_on_cards_that_are_not_here(card, tmp_path):
    program = "tests.network.kernels.compile_for_cards"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-m", program, *map(str, card)],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "kernels compiled" in result.stdout
