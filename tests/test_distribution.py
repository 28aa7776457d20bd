"""Wheel and sdist: complete, fit for an index, and working in a clean environment without this repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from modelscope_polylm.cli.autoload import FILE_NAME
from tests.processes import ROOT, environment

pytestmark = pytest.mark.slow
PACKAGE = "modelscope_polylm/"


def run(*command: str | Path, folder: Path) -> str:
    """Run a program that sees nothing of this repository."""
    settings = {"env": environment(PYTHONPATH="", PIP_DISABLE_PIP_VERSION_CHECK="1"), "timeout": 1200}
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist, made as `make dist` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [file] = built.glob("*.whl")
    return file


def test_an_index_takes_them(built: Path) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir()), folder=built)
    assert said.count("PASSED") == 2


def test_both_hold_the_whole_package_and_no_tests(built: Path, wheel: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    listed = subprocess.run(["git", "ls-files", PACKAGE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if name.startswith(PACKAGE)}
        others = {name.split("/")[0] for name in archive.namelist() if name not in in_wheel}
    with tarfile.open(sdist) as source:
        in_sdist = {name.partition("/")[2] for name in source.getnames() if source.getmember(name).isfile()}
    assert in_wheel == set(listed.split()) == {name for name in in_sdist if name.startswith(PACKAGE)}
    assert {name.partition(".dist")[1] for name in others} == {".dist"}


@pytest.mark.timeout(1500)
def test_installed_in_a_clean_environment_and_removed_from_it(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "clean", with_pip=True)
    scripts = tmp_path / "clean" / "bin"
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel, folder=tmp_path)
    assert run(scripts / "polylm", "demo", "--device", "cpu", folder=tmp_path).startswith("北京是中国的首都。")
    assert run(scripts / "polylm", "autoload", "on", folder=tmp_path).startswith("on: ")
    hooked = "import sys, modelscope; print('modelscope_polylm' in sys.modules)"
    assert run(scripts / "python", "-c", hooked, folder=tmp_path).endswith("True\n")
    run(scripts / "python", "-m", "pip", "uninstall", "--yes", "modelscope-polylm", folder=tmp_path)
    assert list(tmp_path.rglob(FILE_NAME)) == list(tmp_path.rglob("modelscope_polylm*")) == []
    assert run(scripts / "python", "-c", hooked, folder=tmp_path).endswith("False\n")
