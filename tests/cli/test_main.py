"""The command line as a whole: help, version, errors, speed, and the way in through ModelScope's command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import modelscope_polylm
from modelscope_polylm.__main__ import app
from modelscope_polylm.errors import DeviceError, OptionError, SnapshotError
from tests.processes import ROOT, ended_seconds, environment, run_polylm

COMMANDS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
MODELSCOPE = "import sys; from modelscope_hub.cli.main import run_cmd; sys.exit(run_cmd(sys.argv[1:]))"


def run_python(*arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(path), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=paths),
        timeout=240,
        check=False,
    )


def test_help_names_the_commands_and_the_exit_codes(polylm: Callable[..., Any]) -> None:
    outcome = polylm("--help")
    assert outcome.exit_code == 0
    for command in ("demo", "generate", "chat", "batch", "info", "tokens", "bench"):
        assert f"  {command} " in outcome.output
    for line in ("0    done", "2    wrong option or input", "130  stopped by Ctrl-C"):
        assert f"  {line}\n" in outcome.output


def test_polylm_alone_shows_its_help(polylm: Callable[..., Any]) -> None:
    assert polylm() == polylm("--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(polylm: Callable[..., Any], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    narrow = polylm(command, "--help")
    assert narrow.exit_code == 0
    monkeypatch.setenv("COLUMNS", "80")
    shown = polylm(command, "--help").output
    assert f"Usage: polylm {command}" in " ".join(shown.split()) or f" {command} [OPTIONS]" in shown
    assert "--debug" in shown
    assert "..." not in shown.splitlines()[2]


def test_summaries_are_whole(polylm: Callable[..., Any]) -> None:
    assert "..." not in polylm("--help").output.split("Commands:")[1]


def test_version(polylm: Callable[..., Any]) -> None:
    assert polylm("--version").output == f"polylm {modelscope_polylm.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["generate", "--help"], ["batch", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    source = (
        "import sys\nfrom modelscope_polylm.__main__ import main\n"
        f"try: main({arguments!r})\n"
        "finally: print([name for name in ('torch', 'modelscope', 'transformers', 'gradio') if name in sys.modules])"
    )
    done = run_python("-c", source)
    assert done.stdout.endswith("[]\n"), done.stderr


def test_help_is_quick() -> None:
    run_polylm("--help")  # compiles
    typer_alone = min(_processor_seconds("-c", "import typer, json, ssl") for _ in range(3))
    help_text = min(_processor_seconds("-m", "modelscope_polylm", "--help") for _ in range(3))
    # next to what the machine takes for the same libraries: processors differ, and so does what else they do
    assert help_text < 3.5 * typer_alone, (help_text, typer_alone)


def _processor_seconds(*arguments: str) -> float:
    before = ended_seconds()
    assert run_python(*arguments).returncode == 0
    return ended_seconds() - before


def test_as_a_module() -> None:
    assert run_polylm("--version").stdout == f"polylm {modelscope_polylm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["generat"], "'generate'"),
        (["bacth"], "'batch'"),
        (["generate", "--num-beam", "4", "Hi"], "--num-beams"),
        (["tokens", "--langages"], "--languages"),
        (["generate", "--top-p", "x", "Hi"], "--top-p"),
        (["batch", "in.txt"], "OUT"),
        (["batch", "in.txt", "out", "--batch-size", "0"], "--batch-size"),
        (["demo", "x", "y"], "polylm demo --help"),
        (["info", "tiny", "--model", "tiny"], "unexpected extra argument"),
        (["verify"], "MODEL"),
        (["package", "out"], "MODEL"),
        (["package", "--model", "tiny"], "OUT"),
    ],
)
def test_usage_errors(polylm: Callable[..., Any], arguments: list[str], hint: str) -> None:
    outcome = polylm(*arguments)
    assert (outcome.exit_code, outcome.output) == (2, "")
    assert outcome.errors.startswith("Error: ")
    assert hint.lower() in outcome.errors.lower()
    assert len(outcome.errors.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_its_model_in_both_ways(command: str) -> None:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    others = ("model_id", "endpoint_model")  # where a package goes, and who answers elsewhere
    kinds = {each.name: each.param_type_name for each in parameters if "model" in each.name and each.name not in others}
    assert kinds in ({}, {"model_argument": "argument", "model": "option"})


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("tiny", ["tokens", "Rome"]),
        ("tiny", ["tokens", "--languages"]),
        ("tiny", ["verify", "--no-run"]),
        ("nowhere", ["demo"]),
        ("nowhere", ["generate", "Hi"]),
        ("nowhere", ["generate", "--seed", "1", "--", "-5"]),
        ("nowhere", ["chat"]),
        ("nowhere", ["bench"]),
        ("nowhere", ["package", "out"]),
        ("nowhere", ["finetune", "a.jsonl", "b.jsonl", "--out", "run"]),
    ],
)
def test_the_model_comes_first_or_after_its_flag(polylm: Callable[..., Any], model: str, arguments: list[str]) -> None:
    command, *others = arguments
    by_flag = polylm(command, "--model", model, *others)
    assert polylm(command, model, *others) == by_flag
    assert (model in by_flag.errors) == (model == "nowhere")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DeviceError("no such device"), 1, "no such device"),
        (SnapshotError("It cannot be used:\none\ntwo"), 1, "It cannot be used: one two"),
        (OptionError("top_p=2"), 2, "top_p=2"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x cannot be used: Permission denied."),
        (OSError(28, "No space left on device"), 1, "The output cannot be written: No space left on device."),
        (RuntimeError("first\nsecond"), 1, "RuntimeError: first (unexpected; --debug shows where it comes from)"),
    ],
)
def test_exit_codes(
    polylm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("modelscope_polylm.hub.resolve.resolve", fail)
    outcome = polylm("generate", "Hi")
    assert (outcome.exit_code, outcome.output, outcome.errors) == (code, "", f"Error: {line}\n")
    with pytest.raises(type(error)):
        polylm("generate", "--debug", "Hi")


def test_interrupt(polylm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelscope_polylm.hub.resolve.resolve", interrupt)
    assert polylm("generate", "--debug", "Hi") == (130, "", "Interrupted.\n")


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("polylm ba", "batch"),
        ("polylm info --model as", "assistant-13b"),
        ("polylm info as", "assistant-13b"),
        ("polylm generate --num-be", "--num-beams"),
    ],
)
def test_completion(typed: str, found: str) -> None:
    words = len(typed.split()) - 1
    changes = {"_POLYLM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(words)}
    source = "from modelscope_polylm.__main__ import main; main([])"
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**changes), timeout=120, check=False)
    assert done.stdout.split() == [found], done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package's metadata, entry points included, as an installation would."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


def test_modelscope_command(installed: Path) -> None:
    done = run_python("-c", MODELSCOPE, "polylm", "generate", "--help", path=installed)
    assert done.returncode == 0, done.stderr
    assert "Usage: modelscope polylm generate" in done.stdout
    assert "--num-return-sequences" in done.stdout


def test_modelscope_command_passes_errors_on(installed: Path) -> None:
    done = run_python("-c", MODELSCOPE, "polylm", "generate", path=installed)
    assert done.returncode == 2
    assert "Error: Give one of these: a text" in done.stderr
