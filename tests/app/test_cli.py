"""The command line as a whole: help, version, errors, speed, and the way in through ModelScope's command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modelscope_polylm
from modelscope_polylm.errors import DeviceError, SnapshotError

ROOT = Path(__file__).parents[2]
MODELSCOPE = "import sys; from modelscope_hub.cli.main import run_cmd; sys.exit(run_cmd(sys.argv[1:]))"


def run_process(*arguments: str, path: Path = ROOT, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
        **options,
    )


def test_help_names_the_commands(polylm: Callable[..., Any]) -> None:
    outcome = polylm("--help")
    assert outcome.exit_code == 0
    assert "demo" in outcome.output
    assert "generate" in outcome.output


def test_version(polylm: Callable[..., Any]) -> None:
    assert polylm("--version").output == f"polylm {modelscope_polylm.__version__}\n"


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    start = time.perf_counter()
    source = (
        "import sys\nfrom modelscope_polylm.app.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print([name for name in ('torch', 'modelscope', 'transformers') if name in sys.modules])"
    )
    done = run_process("-c", source)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert time.perf_counter() - start < 3  # 0.2 s on an idle machine


def test_as_a_module() -> None:
    done = run_process("-m", "modelscope_polylm", "--version")
    assert done.stdout == f"polylm {modelscope_polylm.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["generat"], ["generate", "--num-beam", "4", "Hi"], ["generate", "--top-p", "x", "Hi"]]
)
def test_usage_errors(polylm: Callable[..., Any], arguments: list[str]) -> None:
    outcome = polylm(*arguments)
    assert outcome.exit_code == 2
    assert outcome.output == ""
    assert "Error" in outcome.errors


@pytest.mark.parametrize(("error", "code"), [(DeviceError("no such device"), 1), (SnapshotError("no snapshot"), 1)])
def test_exit_codes(polylm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("modelscope_polylm.hub.resolve.resolve", fail)
    outcome = polylm("generate", "Hi")
    assert (outcome.exit_code, outcome.output, outcome.errors) == (code, "", f"Error: {error}\n")
    with pytest.raises(type(error)):
        polylm("generate", "--debug", "Hi")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package's metadata, entry points included, as an installation would."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


def test_modelscope_command(installed: Path) -> None:
    done = run_process("-c", MODELSCOPE, "polylm", "generate", "--help", path=installed)
    assert done.returncode == 0, done.stderr
    assert "Usage: modelscope polylm generate" in done.stdout
    assert "--num-return-sequences" in done.stdout


def test_modelscope_command_passes_errors_on(installed: Path) -> None:
    done = run_process("-c", MODELSCOPE, "polylm", "generate", path=installed)
    assert done.returncode == 2
    assert "Error: Give one of these: a text" in done.stderr
