"""A package in engines that need an environment of their own, which is made with pip on the first run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.comparison import check_transformers
from tests.interop.run_programs import run_program

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize("environment", ["transformers-4.40", "transformers-4.57"])
def test_older_transformers(environment: str, package: Path, expected: dict[str, Any], expected_file: Path) -> None:
    found = run_program(environment, "with_transformers.py", package, expected_file)
    assert found["version"].startswith(environment.rpartition("-")[2])
    check_transformers(found, expected, splits_special_tokens=environment != "transformers-4.40")


def test_ctranslate2(package: Path, expected: dict[str, Any], expected_file: Path, tmp_path: Path) -> None:
    found = run_program("ctranslate2", "with_ctranslate2.py", package, expected_file, tmp_path / "converted")
    assert found["greedy"] == expected["greedy"]
    assert found["beams"] == expected["beams"]


@pytest.mark.slow  # an environment of 4 GB
def test_vllm_on_the_cpu(package: Path, expected: dict[str, Any], expected_file: Path) -> None:
    found = run_program("vllm", "with_vllm.py", package, expected_file, timeout=1500)
    assert found["text_ids"] == expected["text_ids"]
    assert found["prompts"] == expected["prompts"]
    assert found["greedy"] == expected["greedy"]
