"""Fixtures for all tests: caches and settings in temporary folders, no network, a local hub, a random snapshot."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

# Read by the libraries when they are imported, so set before any test is.
os.environ.update(HF_HUB_OFFLINE="1", NO_PROXY="127.0.0.1,localhost", TOKENIZERS_PARALLELISM="false")

import pytest

from tests.local_hub import LocalHub, serving
from tests.snapshots import build_snapshot

# A shell starts background jobs with Ctrl-C ignored, and programs that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def refused_endpoint() -> Iterator[str]:
    """The address of a port that refuses connections: it is taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder that all tests see."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def isolated_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, home: Path, refused_endpoint: str
) -> None:
    """Every test has its own empty ModelScope cache, and no hub unless it uses the fixture `hub`."""
    folder = tmp_path_factory.mktemp("modelscope")
    # the last one is set for whole processes by commands that run here
    for name in ("MODELSCOPE_DOMAIN", "MODELSCOPE_API_TOKEN", "XDG_CACHE_HOME", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(folder / "home"))
    use_endpoint(monkeypatch, refused_endpoint)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, isolated_environment: None) -> Iterator[LocalHub]:
    """A hub of this test's own; ModelScope's client asks it and no other."""
    with serving() as local_hub:
        use_endpoint(monkeypatch, local_hub.url)
        yield local_hub


@pytest.fixture(scope="session")
def random_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random fp32 snapshot in the 2023 layout: width 256, 2 heads, 2 layers, 256 positions. Do not write to it."""
    return build_snapshot(tmp_path_factory.mktemp("random") / "snapshot")


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Send ModelScope's client to an address. It keeps the first settings that it reads, so they are dropped too."""
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
    config = sys.modules.get("modelscope_hub.config")
    if config is not None:
        config.set_default_config(None)
