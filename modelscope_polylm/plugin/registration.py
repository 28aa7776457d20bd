"""Which of our classes stand under which of ModelScope's names, and which models its `pipeline` finds for them.

ModelScope finds a class in two steps: an index of its own sources says which module to import for a key, then that
module registers the class. So the index is pointed at our modules, whose decorators register with `force=True`;
ModelScope's own PolyLM, which today's transformers breaks, is never imported. Nothing here imports ModelScope or torch:
where ModelScope is not loaded yet, the entries are made right after it loads.

For that, imports of other packages' modules are followed: an action runs after one, or a module of ours replaces it.
Both work through one finder on `sys.meta_path` (the import system's own extension point), so that nothing is imported
before somebody needs it.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

MODEL_TYPE = "polylm"
PIPELINE_TYPE = "polylm-text-generation"
PREPROCESSOR_TYPE = "polylm-tokenizer"
TRAINER_TYPE = "polylm-sft"
TRANSLATION = "translation"
TASKS = ("text-generation", "chat", TRANSLATION)

_MODEL = "modelscope_polylm.plugin.model"
_PIPELINES = "modelscope_polylm.plugin.pipelines"
_TRANSLATION = "modelscope_polylm.plugin.translation"
_PREPROCESSOR = "modelscope_polylm.plugin.preprocessor"
_TRAINER = "modelscope_polylm.plugin.trainer"

INDEX_ENTRIES = {
    **{("MODELS", task, MODEL_TYPE): _MODEL for task in TASKS},
    **{("PIPELINES", task, PIPELINE_TYPE): _PIPELINES for task in TASKS},
    ("PIPELINES", TRANSLATION, PIPELINE_TYPE): _TRANSLATION,
    ("PREPROCESSORS", "nlp", PREPROCESSOR_TYPE): _PREPROCESSOR,
    ("TRAINERS", "default", TRAINER_TYPE): _TRAINER,
}
BUILT_IN_MODULES = {
    "modelscope.models.nlp.polylm.text_generation": _MODEL,
    "modelscope.pipelines.nlp.polylm_text_generation_pipeline": _PIPELINES,
}

Action = Callable[[ModuleType], None]


def register() -> None:
    """Put our classes under ModelScope's names, now or as soon as ModelScope is imported. Safe to call again."""
    for built_in, ours in BUILT_IN_MODULES.items():
        replace_module(built_in, ours)
    after_import("modelscope.utils.import_utils", _fill_index)
    after_import("modelscope.preprocessors.base", _fill_preprocessor_map)
    after_import("modelscope.pipelines.builder", _extend_pipeline)


def _fill_index(import_utils: ModuleType) -> None:
    index = import_utils.LazyImportModule.get_ast_index()["index"]
    for signature, module in INDEX_ENTRIES.items():
        index[signature] = {"filepath": "", "imports": [], "module": module}


def _fill_preprocessor_map(preprocessors: ModuleType) -> None:
    preprocessors.PREPROCESSOR_MAP.update({(MODEL_TYPE, task): PREPROCESSOR_TYPE for task in TASKS})


def _extend_pipeline(builder: ModuleType) -> None:
    """Let `pipeline(model=...)` take what it ends in errors with: paths, names of releases, folders of Hugging Face."""
    original: Callable[..., Any] = builder.pipeline

    @functools.wraps(original)
    def pipeline(task: str | None = None, model: Any = None, *arguments: Any, **options: Any) -> Any:
        if task in (None, *TASKS):
            model = _known_folder(model, options.get("model_revision"))
            if not arguments and _lacks_pipeline(model):
                options.setdefault("pipeline_name", PIPELINE_TYPE)
        return original(task, model, *arguments, **options)

    if not hasattr(original, "__wrapped__"):
        replace_everywhere(original, pipeline)


def _known_folder(model: Any, revision: str | None) -> Any:
    """The folder of a snapshot or release; what ModelScope knows better stays as it is."""
    from modelscope_polylm.releases import named_release

    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str):
        return model
    if _is_snapshot(Path(name).expanduser()):
        # a relative one could be taken for the id of a hub
        return str(Path(name).expanduser().absolute())
    release = None if Path(name).exists() else named_release(name)
    if release is None or name == release.model_id:
        return name
    from modelscope_polylm.hub.resolve import resolve

    return str(resolve(name, revision))


def _is_snapshot(folder: Path) -> bool:
    """Whether a folder holds a GPT-2 network with a SentencePiece model, as no other published model does."""
    return (folder / "tokenizer.model").is_file() and _settings(folder / "config.json").get("model_type") == "gpt2"


def _lacks_pipeline(model: Any) -> bool:
    """Whether a snapshot's folder does not tell ModelScope its pipeline."""
    if not isinstance(model, str) or not _is_snapshot(Path(model)):
        return False
    section = _settings(Path(model) / "configuration.json").get("pipeline")
    return not (isinstance(section, dict) and section.get("type"))


def _settings(file: Path) -> dict[str, Any]:
    from modelscope_polylm.errors import SnapshotError
    from modelscope_polylm.files import read_json

    try:
        values = read_json(file)
    except SnapshotError:
        return {}  # opening the snapshot tells what is wrong with it
    return values if isinstance(values, dict) else {}


class _FollowedLoader:
    """The module's own loader, followed by an action."""

    def __init__(self, loader: Any, action: Action) -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._action(module)


class _StandInLoader:
    """Fills a module with the public names of another one."""

    def __init__(self, source: str) -> None:
        self._source = source

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        source = importlib.import_module(self._source)
        module.__doc__ = source.__doc__
        module.__dict__.update({name: getattr(source, name) for name in ("__all__", *source.__all__)})


class ImportFollower:
    """A meta path finder: knows which modules are followed by an action, and which are replaced."""

    def __init__(self) -> None:
        self.actions: dict[str, Action] = {}
        self.stand_ins: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self.stand_ins:
            return ModuleSpec(fullname, _StandInLoader(self.stand_ins[fullname]))  # type: ignore[arg-type]
        if fullname not in self.actions:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _FollowedLoader(spec.loader, self.actions[fullname])  # type: ignore[assignment]
        return spec


_FOLLOWER = ImportFollower()


def after_import(name: str, action: Action) -> None:
    """Run `action(module)` as soon as the module `name` is imported: now if it already is, else right after."""
    _install()
    _FOLLOWER.actions[name] = action
    if name in sys.modules:
        action(importlib.import_module(name))  # waits for another thread that is still importing it


def replace_module(name: str, source: str) -> None:
    """Make `import name` give a module with the public names (`__all__`) of the module `source`, imported then.

    A module `name` that was imported before is forgotten, and so are the names that its parent packages took from it.
    """
    _install()
    _FOLLOWER.stand_ins[name] = source
    previous = sys.modules.pop(name, None)
    if previous is not None:
        _forget(name, previous)


def replace_everywhere(value: object, new: object) -> None:
    """Give every module that holds `value`, under any name, the new value: also those that took it from another one."""
    for module in list(sys.modules.values()):
        held = getattr(module, "__dict__", {})
        for name in [name for name, each in held.items() if each is value]:
            held[name] = new


def _install() -> None:
    if _FOLLOWER not in sys.meta_path:
        sys.meta_path.insert(0, _FOLLOWER)  # type: ignore[arg-type]


def _forget(name: str, module: ModuleType) -> None:
    taken = [module, *(getattr(module, public) for public in getattr(module, "__all__", ()))]
    while name := name.rpartition(".")[0]:
        parent = vars(sys.modules[name]) if name in sys.modules else {}
        for key in [key for key, value in parent.items() if any(value is one for one in taken)]:
            del parent[key]
