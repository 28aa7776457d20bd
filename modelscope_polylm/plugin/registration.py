"""Which of our classes stand under which of ModelScope's names.

ModelScope finds a class in two steps: an index of its own sources says which module to import for a key, then that
module registers the class. So the index is pointed at our modules, whose decorators register with `force=True`;
ModelScope's own PolyLM, which today's transformers breaks, is never imported. Nothing here imports ModelScope or torch:
where ModelScope is not loaded yet, the entries are made right after it loads.
"""

from __future__ import annotations

from types import ModuleType

from modelscope_polylm.plugin.import_hooks import after_import, replace_module

MODEL_TYPE = "polylm"
PIPELINE_TYPE = "polylm-text-generation"
PREPROCESSOR_TYPE = "polylm-tokenizer"
TASKS = ("text-generation", "chat")

_MODEL = "modelscope_polylm.plugin.model"
_PIPELINES = "modelscope_polylm.plugin.pipelines"
_PREPROCESSOR = "modelscope_polylm.plugin.preprocessor"

INDEX_ENTRIES = {
    **{("MODELS", task, MODEL_TYPE): _MODEL for task in TASKS},
    **{("PIPELINES", task, PIPELINE_TYPE): _PIPELINES for task in TASKS},
    ("PREPROCESSORS", "nlp", PREPROCESSOR_TYPE): _PREPROCESSOR,
}
BUILT_IN_MODULES = {
    "modelscope.models.nlp.polylm.text_generation": _MODEL,
    "modelscope.pipelines.nlp.polylm_text_generation_pipeline": _PIPELINES,
}


def register() -> None:
    """Put our classes under ModelScope's names, now or as soon as ModelScope is imported. Safe to call again."""
    for built_in, ours in BUILT_IN_MODULES.items():
        replace_module(built_in, ours)
    after_import("modelscope.utils.import_utils", _fill_index)
    after_import("modelscope.preprocessors.base", _fill_preprocessor_map)


def _fill_index(import_utils: ModuleType) -> None:
    index = import_utils.LazyImportModule.get_ast_index()["index"]
    for signature, module in INDEX_ENTRIES.items():
        index[signature] = {"filepath": "", "imports": [], "module": module}


def _fill_preprocessor_map(preprocessors: ModuleType) -> None:
    preprocessors.PREPROCESSOR_MAP.update({(MODEL_TYPE, task): PREPROCESSOR_TYPE for task in TASKS})
