"""Imports run downwards only, optional packages are imported late, and base dependencies suffice for every module."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "modelscope_polylm"

# What each room may import: the floors below it. A room is a folder or file of the package; "" is the package itself.
FLOORS = (
    ("errors", "releases"),
    ("files",),
    ("text", "network"),
    ("generation",),
    ("snapshot",),
    ("backends",),
    ("packaging",),
    ("hub",),
    ("inputs",),
    ("generator",),
    ("training",),
    ("conversation", "openai_requests", "translation"),
    ("self_instruct", "evaluation"),
    ("plugin",),
    ("", "terminal", "http"),
    ("cli", "serve", "web"),
    ("__main__",),
    ("modelscope_command",),
)
BELOW: dict[str, set[str]] = {
    room: {below for lower in FLOORS[:floor] for below in lower} for floor, rooms in enumerate(FLOORS) for room in rooms
}
FACES = {"files", "plugin", "hub", "packaging", "terminal", "cli", "serve", "web", "__main__", "modelscope_command", ""}
"""Rooms that face ModelScope, the hub or people; only these may import ModelScope."""
IN_SWIFT = "training.swift_plugin"  # ms-swift imports it
COMMANDS = {"terminal", "cli", "serve", "web", "__main__"}
FOR_VERSION = {"packaging", "cli", "serve", "web"}  # may import the package itself, to name its version

# The files that make up the transformers backend, and the benchmark that compares with it.
TRANSFORMERS = {f"backends.transformers.{name}" for name in ("backend", "arguments", "generate", "hooks")}
TRANSFORMERS |= {"cli.bench.engines", "training.network", "training.projections", "training.trainer"}
OPTIONAL = {
    "triton",
    "vllm",
    "gradio",
    "tokenizers",
    "peft",
    "liger_kernel",
    "tensorboard",
    "rich",
    "prompt_toolkit",
    "datasets",
    "openai",
    "icu4py",
    "py3langid",
    "rapidfuzz",
    "lm_eval",
    "sacrebleu",
    "rouge_score",
    "sentencex",
    "markdown_it",
    "srt",
    "polib",
}
# The extra `serve`, and the modules that are imported after it was found.
SERVING = {"fastapi", "starlette", "uvicorn", "h11", "anyio", "prometheus_client"}
NEED_SERVING = {
    f"{room}.{path.stem}"
    for room in ("http", "serve")
    for path in (ROOT / PACKAGE / room).glob("*.py")
    if path.stem not in ("__init__", "command", "logs", "vllm_server")
}


class Import(NamedTuple):
    """One import: who imports what, and whether a function does it."""

    module: str
    name: str
    late: bool

    @property
    def room(self) -> str:
        return self.module.split(".")[0]


def module_names() -> list[str]:
    """The modules of the package, without its name: "" for the package itself, 'text.tokenizer', ..."""
    names = (path.relative_to(ROOT / PACKAGE).with_suffix("").parts for path in (ROOT / PACKAGE).rglob("*.py"))
    return sorted(".".join(part for part in parts if part != "__init__") for parts in names)


def path_of(module: str) -> Path:
    path = ROOT.joinpath(PACKAGE, *module.split(".")) if module else ROOT / PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_in(module: str, tree: ast.AST, late: bool = False) -> Iterator[Import]:
    """All imports of a module but those for type checkers alone, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield Import(module, node.module or "", late)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (each for part in node.orelse for each in imports_in(module, part, late))
        else:
            inner = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports_in(module, node, late or inner)


def parsed(module: str) -> list[Import]:
    return list(imports_in(module, ast.parse(path_of(module).read_text(encoding="utf-8"))))


IMPORTS = [each for module in module_names() for each in parsed(module)]


def violations(imports: list[Import]) -> list[str]:
    """Imports within the package that do not run downwards."""
    found = []
    for module, name, late in imports:
        top, _, inner = name.partition(".")
        room, wanted = module.split(".")[0], inner.split(".")[0]
        if top != PACKAGE or room == wanted:
            continue
        if wanted not in BELOW[room] and not (wanted == "" and room in FOR_VERSION):
            found.append(f"{module or PACKAGE} imports {name}{' late' if late else ''}")
    return found


def test_every_room_has_its_place() -> None:
    assert {name.split(".")[0] for name in module_names()} - {"tiny"} <= set(BELOW)
    assert len(IMPORTS) > 300


def test_imports_run_downwards() -> None:
    assert violations(IMPORTS) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [("text.prompts", "network.config"), ("network.gpt2", "generation.beam"), ("backends.native", "plugin.model")],
)
def test_an_upward_import_is_noticed(module: str, name: str) -> None:
    assert violations([Import(module, f"{PACKAGE}.{name}", True)])


def test_only_the_faces_know_modelscope() -> None:
    modelscope = {"modelscope", "modelscope_hub"}
    assert [each for each in IMPORTS if each.name.split(".")[0] in modelscope and each.room not in FACES] == []


def test_only_the_transformers_backend_and_the_benchmark_import_transformers() -> None:
    assert {each.module for each in IMPORTS if each.name.split(".")[0] == "transformers"} <= TRANSFORMERS


def test_optional_packages_are_imported_late() -> None:
    early = [each for each in IMPORTS if not each.late and each.name.split(".")[0] in OPTIONAL]
    # these hold nothing but kernels, and are themselves imported where a kernel is launched
    assert [each for each in early if each.name.split(".")[0] != "triton" or not each.module.endswith("_triton")] == []
    triton = [each for each in IMPORTS if each.name.endswith("_triton")]
    assert triton
    assert [each for each in triton if not (each.late or each.module.endswith("_triton"))] == []


def test_only_the_server_needs_its_extra() -> None:
    early = [each for each in IMPORTS if not each.late and each.module not in NEED_SERVING]
    assert [each for each in early if each.name.split(".")[0] in SERVING] == []
    assert [each for each in early if each.name.removeprefix(f"{PACKAGE}.") in NEED_SERVING] == []


def test_typer_is_for_the_command_line() -> None:
    assert {each.room for each in IMPORTS if each.name.split(".")[0] == "typer"} <= COMMANDS


SCRIPT = """
import importlib, json, sys

def failures(modules, blocked):
    sys.modules.update(dict.fromkeys(blocked))  # None: importing it fails, and find_spec does not find it
    found = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            found.append(f"{module}: {type(error).__name__}: {error}")
    for name in blocked:
        del sys.modules[name]
    return found

lower, all_modules, libraries, optional = json.loads(sys.argv[1])
found = failures(lower, libraries + optional) + failures(all_modules, optional)
print(json.dumps(found))
"""


def test_every_module_imports_with_the_base_dependencies() -> None:
    elsewhere = {*NEED_SERVING, IN_SWIFT}
    modules = [name for name in module_names() if not name.endswith("_triton") and name not in elsewhere]
    lower = [name for name in modules if name.split(".")[0] not in FACES and name not in TRANSFORMERS]
    # transformers itself needs tokenizers
    libraries, optional = (
        ["modelscope", "modelscope_hub", "transformers", "tokenizers"],
        ["triton", "vllm", "gradio", "peft", "tensorboard", "fastapi", "uvicorn", "prometheus_client"],
    )
    full = [[f"{PACKAGE}.{name}".rstrip(".") for name in names] for names in (lower, modules)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps([*full, libraries, optional])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
