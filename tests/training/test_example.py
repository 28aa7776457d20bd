"""The example of fine-tuning does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("flags", [(), ("--quantization", "int8")], ids=["LoRA", "QLoRA"])
def test_a_new_pattern_is_learnt_and_the_old_ones_are_kept(tmp_path: Path, flags: tuple[str, ...]) -> None:
    command = [sys.executable, str(ROOT / "examples" / "finetune.py"), "--folder", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    shares = [float(share) for share in re.findall(r"exact \(([\d.]+) %\)", done.stdout)]
    assert len(shares) == 2 and shares[0] >= 95 and shares[1] >= 90
