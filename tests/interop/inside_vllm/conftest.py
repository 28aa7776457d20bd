"""Tests that need vLLM. They run in an environment of its own, started by ../test_vllm_environment.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.snapshot import Snapshot, open_snapshot

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("vllm") is None else []

SMALL = {"enforce_eager": True, "gpu_memory_utilization": 0.1, "max_num_seqs": 16}
"""Engine options for a quick start next to other programs."""
CONTEXT = 256
"""Less than the tiny model's positions."""
TEXTS = (
    "The weather in Rome",
    "北京是",
    "<|user|>\nWho are you?\n<|assistant|>\n",
    "a",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "Paris est la capitale de la France. Paris est la capitale",
)


@pytest.fixture(scope="session")
def snapshot(package: Path) -> Snapshot:
    return open_snapshot(package)


@pytest.fixture(scope="session")
def prompts(snapshot: Snapshot, expected: dict[str, Any]) -> list[list[int]]:
    """What the published examples ask, and texts that the tiny model has never seen."""
    return [*expected["prompts"][:8], *(snapshot.tokenizer.encode(text) for text in TEXTS)]


@pytest.fixture(scope="session")
def native(snapshot: Snapshot) -> Any:
    return create_backend("native", snapshot, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def vllm(snapshot: Snapshot) -> Iterator[Any]:
    backend: Any = create_backend("vllm", snapshot, torch.device("cpu"), torch.float32, max_model_len=CONTEXT, **SMALL)
    yield backend
    backend.close()


def options(**given: Any) -> GenerationOptions:
    return GenerationOptions.from_layers({"max_new_tokens": 24, "eos_token_id": 2}, given)


__all__ = ["CONTEXT", "SMALL", "NativeBackend", "options"]
