"""`polylm bench` with vLLM, on random weights and on a package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ARGUMENTS = ("--engines", "vllm", "--works", "0", "--works", "1", "--repeats", "1", "--device", "cpu", "--json")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelscope_polylm", "bench", *arguments, *ARGUMENTS]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.parametrize("weights", ["random", "package"])
def test_greedy_and_beams_are_timed(package: Path, weights: str) -> None:
    done = bench("--shape", "small") if weights == "random" else bench("--model", str(package))
    assert done.returncode == 0, done.stderr[-4000:]
    # vLLM itself prints, too
    report = json.loads(done.stdout[done.stdout.index('{\n "shape"') :])
    assert report["shape"] == ("small" if weights == "random" else str(package))
    assert [(result["engine"], result["new"], result["value"] > 0) for result in report["results"]] == [
        ("vllm", 128, True),
        ("vllm", 128, True),
    ]


def test_a_snapshot_of_2023_has_to_be_packaged() -> None:
    done = bench("--model", "tiny")
    assert done.returncode == 1
    assert "Package it first" in done.stderr.splitlines()[-1]
