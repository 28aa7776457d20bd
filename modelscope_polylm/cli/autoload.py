"""`polylm autoload`: PolyLM's classes in every program of a Python environment, without a line of its own.

Python runs the files `*.pth` of its site-packages when it starts. Ours only places an import hook: the package itself
is imported together with ModelScope, and not at all where it is no longer installed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import inspect
import site
import sys
from enum import Enum
from importlib.metadata import Distribution
from pathlib import Path
from typing import Annotated

import typer

from modelscope_polylm.errors import DISTRIBUTION, DependencyError, PolyLMError
from modelscope_polylm.files import write_atomically
from modelscope_polylm.terminal.output import write

FILE_NAME = "modelscope_polylm_autoload.pth"


class Action(str, Enum):
    """What to do with the hook."""

    on = "on"
    off = "off"
    status = "status"


def autoload(action: Annotated[Action, typer.Argument(help="on, off or status.")] = Action.status) -> None:
    """Let programs here use PolyLM without an import.

    After `on` the published snippet runs in this Python environment as it was published: one .pth file in
    site-packages imports this package whenever ModelScope is imported. `off` removes it, and so does uninstalling or
    upgrading the package.
    """
    distribution = installed_distribution()
    file = Path(str(distribution.locate_file(FILE_NAME)))
    try:
        if action is Action.on:
            list_in_record(distribution, hook_line())
            write_atomically(file, hook_line())
        elif action is Action.off:
            file.unlink(missing_ok=True)
            list_in_record(distribution, None)
    except OSError as error:
        raise PolyLMError(
            f"{file.parent} cannot be written ({error.strerror}): run this as the owner of {sys.executable}, or "
            "install the package into a virtual environment."
        ) from error
    write(f"{state(file)}\n")


class AutoloadFinder:
    """Imports modelscope_polylm when modelscope is imported, if it is still there. Finds no module itself."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Find nothing."""
        if name == "modelscope":
            import importlib.util

            if importlib.util.find_spec("modelscope_polylm") is not None:
                import modelscope_polylm  # noqa: F401


def hook_line() -> str:
    """The content of the .pth file: one line that Python runs. It needs no file besides."""
    return f"import sys; exec({inspect.getsource(AutoloadFinder)!r}); sys.meta_path.insert(0, AutoloadFinder)\n"


def state(file: Path) -> str:
    """Whether the hook is there, for people. Raises PolyLMError if the file cannot be read."""
    try:
        written = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "off: a program has to import modelscope_polylm before it uses PolyLM."
    except (OSError, UnicodeDecodeError) as error:
        raise PolyLMError(f"{file} cannot be read ({error}): run `polylm autoload on`, or remove it.") from error
    if written != hook_line():
        return f"on, but {file} is of another version: `polylm autoload on` renews it."
    return f"on: {file} imports modelscope_polylm together with modelscope."


def installed_distribution() -> Distribution:
    """This package as it is installed where Python looks for .pth files. Raises DependencyError."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    for found in importlib.metadata.distributions(name=DISTRIBUTION, path=folders):
        return found
    raise DependencyError(f"{DISTRIBUTION} is not installed in {sys.prefix}: install it there with pip first.")


def list_in_record(distribution: Distribution, content: str | None) -> None:
    """List the .pth file among the installed files, which pip removes with the package; None takes it off the list."""
    record = next((Path(str(file.locate())) for file in distribution.files or () if file.name == "RECORD"), None)
    if record is None:  # conda and Debian keep lists of their own
        return
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(f"{FILE_NAME},")]
    if content is not None:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        kept.append(f"{FILE_NAME},sha256={digest},{len(content.encode())}\n")
    if kept != lines:
        write_atomically(record, "".join(kept))
