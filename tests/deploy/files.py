"""The files of deploy/, and the programs that check them."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KEY, METRICS_KEY = "key-of-the-tests", "key-of-the-metrics"


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def documents(name: str) -> list[Any]:
    """What a YAML file holds."""
    return list(yaml.safe_load_all(read(name)))


def program(name: str) -> str:
    """The path of a program, from the environment of the tests or the machine; without it the test is skipped."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def check(*command: str | Path) -> str:
    """Run a checker, which has to find nothing wrong; returns what it says."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
