"""Our classes stand under ModelScope's names, whatever is imported first, and its own PolyLM is never imported."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelscope_polylm.plugin.registration import after_import, replace_module

FAILING_IMPORT = """
try:
    from modelscope.models.nlp import PolyLMForTextGeneration
except Exception as error:
    print(type(error).__name__)
"""
# What stands before the rest of a program that uses PolyLM.
IMPORT_ORDERS = {
    "package first": "import modelscope_polylm",
    "package last": "from modelscope.pipelines import pipeline as held\nimport modelscope.models, modelscope_polylm",
    "our classes first": "from modelscope_polylm import PolyLMTextGenerationPipeline, PolyLMPreprocessor",
    "after the built-in failed": FAILING_IMPORT + "import modelscope_polylm",
}
REPORT = """
import json, sys
from modelscope.models import Model
from modelscope.models.nlp import PolyLMForTextGeneration
from modelscope.pipelines import pipeline
from modelscope.pipelines.nlp import PolyLMTextGenerationPipeline
from modelscope.preprocessors import Preprocessor
from modelscope.utils.constant import Tasks

folder = sys.argv[1]
text = pipeline(Tasks.text_generation, model=folder, device="cpu")
chat = pipeline(Tasks.chat, model=folder, device="cpu")
built = {
    "text": text, "chat": chat, "model": Model.from_pretrained(folder, device="cpu"),
    "preprocessor": Preprocessor.from_pretrained(folder),
}
places = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
print(json.dumps({
    "classes": {name: f"{type(value).__module__}.{type(value).__name__}" for name, value in built.items()},
    "old names": [PolyLMForTextGeneration.__module__, PolyLMTextGenerationPipeline.__module__],
    "groups": [text.group_key, chat.group_key],
    "built-in files": [place for place in places if "polylm" in place and "/modelscope/" in place],
    "by name": type(globals().get("held", pipeline)("text-generation", model="tiny", device="cpu")).__name__,
    "answer": text("Paris", max_new_tokens=2, do_sample=False)["text"][:5],
}))
"""


SLOW_ORDERS = ("package last", "our classes first")


@pytest.mark.parametrize(
    "order", [pytest.param(order, marks=[pytest.mark.slow] * (order in SLOW_ORDERS)) for order in IMPORT_ORDERS]
)
def test_every_import_order(order: str, random_snapshot: Path, run_script: Callable[..., Any]) -> None:
    report = run_script(IMPORT_ORDERS[order] + "\n" + REPORT, random_snapshot)
    assert report["classes"] == {
        "text": "modelscope_polylm.plugin.pipelines.PolyLMTextGenerationPipeline",
        "chat": "modelscope_polylm.plugin.pipelines.PolyLMChatPipeline",
        "model": "modelscope_polylm.plugin.model.PolyLMForTextGeneration",
        "preprocessor": "modelscope_polylm.plugin.preprocessor.PolyLMPreprocessor",
    }
    assert report["by name"] == "PolyLMTextGenerationPipeline"
    assert report["old names"] == ["modelscope_polylm.plugin.model", "modelscope_polylm.plugin.pipelines"]
    assert report["groups"] == ["text-generation", "chat"]
    # the package `modelscope.models.nlp.polylm` itself holds no class
    assert [place for place in report["built-in files"] if not place.endswith("/nlp/polylm/__init__.py")] == []
    assert report["answer"] == "Paris"


def test_import_is_cheap(run_script: Callable[..., Any]) -> None:
    report = run_script(
        "import json, sys, time; start = time.perf_counter(); import modelscope_polylm; "
        "print(json.dumps([time.perf_counter() - start, 'torch' in sys.modules, 'modelscope' in sys.modules]))"
    )
    assert report[1:] == [False, False]
    assert report[0] < 0.2


def test_public_names_exist() -> None:
    import modelscope_polylm

    assert {name for name in modelscope_polylm.__all__ if not hasattr(modelscope_polylm, name)} == set()
    assert set(modelscope_polylm.__all__) <= set(dir(modelscope_polylm))
    with pytest.raises(AttributeError, match="has no attribute 'PolyLMForNothing'"):
        _ = modelscope_polylm.PolyLMForNothing


def test_registering_again_changes_nothing() -> None:
    from modelscope.utils.import_utils import LazyImportModule

    from modelscope_polylm.plugin.registration import INDEX_ENTRIES, register

    index = LazyImportModule.get_ast_index()["index"]
    before = dict(index)
    register()
    assert index == before
    assert {signature: index[signature]["module"] for signature in INDEX_ENTRIES} == INDEX_ENTRIES


def test_each_task_has_classes_of_its_own() -> None:
    from modelscope_polylm import (
        PolyLMChatPipeline,
        PolyLMForChat,
        PolyLMForTextGeneration,
        PolyLMTextGenerationPipeline,
    )

    assert PolyLMForTextGeneration.group_key == PolyLMTextGenerationPipeline.group_key == "text-generation"
    assert PolyLMForChat.group_key == PolyLMChatPipeline.group_key == "chat"


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
