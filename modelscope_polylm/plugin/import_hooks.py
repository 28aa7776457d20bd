"""Follows imports of other packages' modules: runs an action after one, or replaces one by a module of ours.

Both work through one finder on `sys.meta_path` (the import system's own extension point), so that nothing is imported
before somebody needs it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


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
