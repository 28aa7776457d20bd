"""A package in plain transformers, without this project's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.comparison import check_transformers
from tests.interop.with_transformers import run


@pytest.fixture(scope="module")
def found(package: Path, expected: dict[str, Any]) -> dict[str, Any]:
    return run(str(package), expected)


def test_installed_transformers_gives_the_same_ids(found: dict[str, Any], expected: dict[str, Any]) -> None:
    check_transformers(found, expected)


def test_answers_are_what_the_tiny_model_learned(found: dict[str, Any], expected: dict[str, Any]) -> None:
    # An empty or endless answer would be equal, too.
    assert all(0 < len(ids) < 24 for ids in found["beams"])
    assert len({tuple(ids) for ids in found["beams"]}) == len(expected["questions"])
