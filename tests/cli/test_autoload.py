"""`polylm autoload`: the published snippet without an import of ours, and nothing left when it is taken back."""

from __future__ import annotations

import csv
import importlib.metadata
import re
import site
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.cli.autoload import FILE_NAME, AutoloadFinder, hook_line
from modelscope_polylm.errors import DISTRIBUTION
from modelscope_polylm.hub.resolve import TINY_FOLDER
from tests.local_hub import LocalHub
from tests.processes import ROOT, environment

PUBLISHED = ("damo/nlp_polylm_assistant_13b_text_generation", "v1.0.0")
INFO = f"{DISTRIBUTION.replace('-', '_')}-0.1.0.dist-info"
MOST_SECONDS = 0.001


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages folder into which pip has installed the package."""
    folder = tmp_path / "site-packages"
    (folder / INFO).mkdir(parents=True)
    (folder / INFO / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: 0.1.0\n")
    (folder / INFO / "RECORD").write_text(f"{INFO}/METADATA,,\n{INFO}/RECORD,,\n")
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder)])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    return folder


def run(packages: Path, source: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program whose Python has the folder among its site-packages, and something before it starts to use it."""
    command = [sys.executable, "-c", f"{first}\nimport site; site.addsitedir({str(packages)!r})\n{source}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240, check=False)


def published_snippet() -> str:
    """README's, without the line that it adds."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\nimport modelscope_polylm\n\n(from modelscope.*?)```", readme, re.DOTALL)
    assert found is not None
    assert "modelscope_polylm" not in found[1]
    return found[1]


def test_the_published_snippet_runs(packages: Path, polylm: Callable[..., Any], hub: LocalHub) -> None:
    hub.publish(TINY_FOLDER, *PUBLISHED)
    assert polylm("autoload").output.startswith("off: ")
    assert polylm("autoload", "on").output.startswith(f"on: {packages / FILE_NAME}")
    done = run(packages, published_snippet())
    assert done.stdout.splitlines()[-1] == "北京是中国的首都。", done.stderr
    assert polylm("autoload", "off").output.startswith("off: ")
    assert run(packages, published_snippet()).returncode != 0


def test_a_start_of_python_imports_nothing(packages: Path, polylm: Callable[..., Any]) -> None:
    polylm("autoload", "on")
    done = run(packages, "print(sorted(set(sys.modules) - before))", "import sys; before = {*sys.modules, 'site'}")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_start_of_python_costs_less_than_a_millisecond() -> None:
    line, seconds = hook_line(), []
    for _ in range(20):
        start = time.perf_counter()
        exec(line, {})
        seconds.append(time.perf_counter() - start)
        assert sys.meta_path.pop(0).__name__ == AutoloadFinder.__name__  # type: ignore[attr-defined]
    print(f"The hook takes {min(seconds) * 1e6:.0f} µs.")
    assert min(seconds) < MOST_SECONDS


def test_pip_removes_it_with_the_package(packages: Path, polylm: Callable[..., Any]) -> None:
    before = (packages / INFO / "RECORD").read_bytes()
    for _ in range(2):
        polylm("autoload", "on")
    rows = [row for row in csv.reader((packages / INFO / "RECORD").open()) if row[0] == FILE_NAME]
    assert len(rows) == 1
    [entry] = [
        file for file in importlib.metadata.Distribution.at(packages / INFO).files or () if file.name == FILE_NAME
    ]
    assert entry.locate().read_text() == hook_line()  # type: ignore[attr-defined]
    assert entry.hash is not None and entry.size == len(hook_line().encode())
    polylm("autoload", "off")
    assert (packages / INFO / "RECORD").read_bytes() == before
    assert polylm("autoload", "off").exit_code == 0


def test_without_a_list_of_files(packages: Path, polylm: Callable[..., Any]) -> None:
    (packages / INFO / "RECORD").unlink()
    assert polylm("autoload", "on").output.startswith("on: ")
    assert polylm("autoload", "off").output.startswith("off: ")


def test_what_is_left_after_the_package_does_nothing(packages: Path, polylm: Callable[..., Any]) -> None:
    polylm("autoload", "on")
    (packages / "modelscope.py").write_text("works = True\n")
    source = (
        f"import sys; sys.path[:] = [each for each in sys.path if each not in ('', {str(ROOT)!r})]\n"
        "sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in str(each).lower()]\n"
        f"sys.path.insert(0, {str(packages)!r})\nimport modelscope; print(modelscope.works)"
    )
    done = run(packages, source)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_another_version_s_file_is_renewed(packages: Path, polylm: Callable[..., Any]) -> None:
    (packages / FILE_NAME).write_text("import sys\n")
    assert "of another version" in polylm("autoload", "status").output
    assert polylm("autoload", "on").output.startswith("on: ")


def test_bad_calls(packages: Path, polylm: Callable[..., Any]) -> None:
    assert "'on', 'off'" in polylm("autoload", "onn").errors
    (packages / FILE_NAME).write_bytes(b"\xff")
    assert "cannot be read" in polylm("autoload").errors
    (packages / INFO / "METADATA").unlink()
    (packages / INFO).rename(packages / "other-1.dist-info")
    outcome = polylm("autoload", "on")
    assert (outcome.exit_code, outcome.output) == (1, "")
    assert f"{DISTRIBUTION} is not installed in {sys.prefix}" in outcome.errors


def test_a_folder_that_cannot_be_written(packages: Path, polylm: Callable[..., Any]) -> None:
    (packages / FILE_NAME).mkdir()  # root may write to every folder, but not replace one by a file
    outcome = polylm("autoload", "on")
    assert (outcome.exit_code, outcome.output) == (1, "")
    assert "cannot be written (Is a directory): run this as the owner of" in outcome.errors
