"""Loaded pipelines over the random snapshot, shared by the tests of this room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm import PolyLMChatPipeline, PolyLMForTextGeneration, PolyLMTextGenerationPipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model(random_snapshot: Path) -> PolyLMForTextGeneration:
    return PolyLMForTextGeneration(random_snapshot, device="cpu", prompt_format="assistant")


@pytest.fixture(scope="session")
def pipe(model: PolyLMForTextGeneration) -> PolyLMTextGenerationPipeline:
    return PolyLMTextGenerationPipeline(model)


@pytest.fixture(scope="session")
def chat(model: PolyLMForTextGeneration) -> PolyLMChatPipeline:
    return PolyLMChatPipeline(model)


@pytest.fixture
def run_script() -> Callable[..., Any]:
    """Runs Python source in a process of its own, in which nothing is imported yet; returns the JSON it prints last."""

    def run(source: str, *arguments: object) -> Any:
        command = [sys.executable, "-c", source, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
