"""Our classes stand under ModelScope's names, whatever is imported first, and its own PolyLM is never imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
