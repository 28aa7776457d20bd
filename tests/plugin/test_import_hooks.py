"""Following other modules' imports."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from modelscope_polylm.plugin.import_hooks import after_import, replace_module


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with the modules `original` and `ours`, importable during the test."""
    name = tmp_path.name  # what is followed stays followed, so every test has a package of its own
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "original.py").write_text("__all__ = ['Thing']\nclass Thing: origin = 'original'\n")
    (folder / "ours.py").write_text("__all__ = ['Thing']\nclass Thing: origin = 'ours'\nhidden = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_action_runs_right_after_a_later_import(package: str) -> None:
    seen: list[ModuleType] = []
    after_import(f"{package}.original", seen.append)
    assert seen == []
    module = importlib.import_module(f"{package}.original")
    assert seen == [module]
    assert "class Thing" in inspect.getsource(module.Thing)


def test_action_runs_at_once_for_an_imported_module(package: str) -> None:
    module = importlib.import_module(f"{package}.original")
    seen: list[ModuleType] = []
    after_import(f"{package}.original", seen.append)
    assert seen == [module]


def test_missing_module_is_still_missing() -> None:
    after_import("followed_package_that_is_not_there", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("followed_package_that_is_not_there")


def test_replaced_module_has_our_public_names(package: str) -> None:
    replace_module(f"{package}.original", f"{package}.ours")
    assert f"{package}.ours" not in sys.modules
    module = importlib.import_module(f"{package}.original")
    assert module.Thing.origin == "ours"
    assert not hasattr(module, "hidden")


def test_replacing_forgets_what_was_imported_before(package: str) -> None:
    original = importlib.import_module(f"{package}.original")
    parent = importlib.import_module(package)
    parent.Thing = original.Thing  # type: ignore[attr-defined]
    replace_module(f"{package}.original", f"{package}.ours")
    assert not hasattr(parent, "Thing")
    assert not hasattr(parent, "original")
    assert importlib.import_module(f"{package}.original").Thing.origin == "ours"
