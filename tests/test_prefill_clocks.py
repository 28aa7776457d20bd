"""The benchmark of prefill and clocks, with a program that answers as nvidia-smi does."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from benchmarks import prefill_clocks

ANSWERS = """#!{python}
import sys, time
assert sys.argv[1:] == {arguments}, sys.argv
while True:
    print("1500, 612.25", flush=True)
    time.sleep(0.02)
"""


def test_each_round_has_times_clocks_and_power(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(ANSWERS.format(python=sys.executable, arguments=[*prefill_clocks.QUERY[1:], "-i", "0"]))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("sys.argv", ["prefill_clocks", "--shape", "small", "--device", "cpu"])
    monkeypatch.setattr(prefill_clocks, "ROUNDS", ((0.0, 3), (0.01, 2)))
    prefill_clocks.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    for line, calls in zip(printed, ("0.0 s, 3", "0.01 s, 2"), strict=True):
        assert line.startswith(f"pause of {calls} calls: first ")
        assert line.endswith("clock 1500 MHz (1500 - 1500), power 612 W, at most 612")
        assert all(float(number) > 0 for number in re.findall(r"(?:first|median|last) ([\d.]+)", line))
