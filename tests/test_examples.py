"""The examples run as they stand, and print what they should."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelscope_polylm.errors import SnapshotError

ROOT = Path(__file__).parents[1]
NAMES = ["translate", "chat", "batch", "stream"]
Run = Callable[..., str]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in this process as `python examples/NAME.py ARGUMENTS`; returns what it prints."""

    def run(name: str, *arguments: str) -> str:
        path = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_translate_shows_the_best_ones_first(run_example: Run) -> None:
    lines = [line.split(maxsplit=1) for line in run_example("translate").splitlines()]
    assert len(lines) == 3
    assert lines[0][1] == "北京是中国的首都。"
    scores = [float(score) for score, _ in lines]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("best", [1, 5])
def test_translate_into_another_language(run_example: Run, best: int) -> None:
    printed = run_example("translate", "Rome is the capital of Italy.", "--to", "Japanese", "--best", str(best))
    assert len(printed.splitlines()) == best
    assert printed.splitlines()[0].endswith("  ローマはイタリアの首都です。")


def test_chat_answers_every_turn(run_example: Run) -> None:
    answers = [line for line in run_example("chat").splitlines() if line.startswith("assistant: ")]
    assert answers == [
        "assistant: Paris ist die Hauptstadt von Frankreich.",
        "assistant: 도쿄는 일본의 수도입니다.",
        "assistant: روما هي عاصمة إيطاليا.",
    ]


def test_chat_takes_its_turns_from_the_command_line(run_example: Run) -> None:
    question = "Oslo is the capital of Norway.\nTranslate this sentence from English to Dutch."
    printed = run_example("chat", question)
    assert printed == f"user: {question}\nassistant: Oslo is de hoofdstad van Noorwegen.\n\n"


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batch_answers_each_prompt(run_example: Run, size: int) -> None:
    answers = [line.split(": ", 1)[1] for line in run_example("batch", "--batch-size", str(size)).splitlines()]
    assert answers == [
        "Rome est la capitale de l'Italie.",
        "Лондон — столица Великобритании.",
        "オスロはノルウェーの首都です。",
        "Kota Meksiko adalah ibu kota Meksiko.",
        "פריז היא בירת צרפת.",
    ]


def test_stream_prints_the_text_once(run_example: Run) -> None:
    prompt = "<|user|>\nRome is the capital of Italy.\nTranslate this sentence from English to French.\n<|assistant|>\n"
    assert run_example("stream", prompt) == f"{prompt}Rome est la capitale de l'Italie.\n"


def test_an_example_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(ROOT / "examples" / "stream.py")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("<|assistant|>\nปารีสเป็นเมืองหลวงของฝรั่งเศส\n")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_model_is_a_clear_error(run_example: Run, name: str) -> None:
    with pytest.raises(SnapshotError, match="Did you mean tiny"):
        run_example(name, "--model", "tinny")


@pytest.mark.parametrize("name", NAMES)
def test_help_and_size(run_example: Run, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_example(name, "--help")
    assert ended.value.code == 0
    assert f"python examples/{name}.py" in capsys.readouterr().out
    assert 20 <= len((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 50
