"""Finding a model: offline first, and no download without a word about its size."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.terminal.models import find_model, readable_bytes
from tests.local_hub import LocalHub
from tests.processes import run_polylm, terminal

MODEL = "damo/nlp_polylm_1b7_text_generation"
GENERATE = ("generate", "--model", "1.7b", "--device", "cpu", "--max-new-tokens", "2", "Beijing")


def test_a_folder_and_the_bundled_model_need_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_model("tiny") == TINY_FOLDER
    assert find_model(str(TINY_FOLDER)) == TINY_FOLDER
    assert capsys.readouterr() == ("", "")


def test_download_is_announced_once(hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.publish(TINY_FOLDER, MODEL)
    size = sum(file.stat().st_size for file in TINY_FOLDER.rglob("*") if file.is_file())
    folder = find_model("1.7b")
    shown = capsys.readouterr()
    assert f"{MODEL} is not complete in " in shown.err
    assert f"downloading up to {readable_bytes(size)}." in shown.err.splitlines()[0]
    assert shown.out == ""
    before = len(hub.requests)
    assert find_model("1.7b") == folder
    assert len(hub.requests) == before
    assert "downloading" not in capsys.readouterr().err


def test_no_hub(polylm: Callable[..., Any]) -> None:
    outcome = polylm(*GENERATE)
    assert (outcome.exit_code, outcome.output) == (1, "")
    assert "could not be downloaded" in outcome.errors or "cannot be reached" in outcome.errors
    assert len(outcome.errors.splitlines()) == 1


def test_progress_on_a_terminal_only(hub: LocalHub, tmp_path: Path) -> None:
    hub.publish(TINY_FOLDER, MODEL)
    places = {"MODELSCOPE_CACHE": str(tmp_path / "a"), "MODELSCOPE_HOME": str(tmp_path / "home")}
    with terminal(*GENERATE, **places) as screen:
        assert screen.wait() == 0, screen.screen
        assert "downloading up to" in screen.screen
        assert "%|" in screen.screen
    done = run_polylm(*GENERATE, env={**os.environ, **places, "MODELSCOPE_CACHE": str(tmp_path / "b")})
    assert done.returncode == 0, done.stderr
    assert "downloading up to" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (27_813_580_800, "27.8 GB"), (3e13, "30,000.0 GB")],
)
def test_readable_bytes(count: float, text: str) -> None:
    assert readable_bytes(count) == text
