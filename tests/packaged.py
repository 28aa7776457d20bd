"""Fixtures of the tests that read or write packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging.package import package_snapshot


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny snapshot, packaged in several shards. Do not write to it."""
    folder = tmp_path_factory.mktemp("package") / "tiny"
    package_snapshot(TINY_FOLDER, folder, max_shard_size="3MB")
    return folder


@pytest.fixture
def short_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare tokenizers on little text, for tests of something else."""
    texts = [("natural en", "Beijing is the capital."), ("natural fr", "un café"), ("code", "x = 1\n")]
    monkeypatch.setattr("modelscope_polylm.packaging.tokenizer.parity.corpus_strings", lambda: iter(texts))
