"""`polylm batch` in real processes: kills, full disks, terminals, pipes."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.batch.test_job import lines, write_lines
from tests.processes import POLYLM, environment, run_polylm, terminal
from tests.small_disk import FILLER, make_room, small_disk

OPTIONS = ("--device", "cpu", "--max-new-tokens", "8", "--num-beams", "2", "--batch-size", "2")


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [*POLYLM, "batch", str(source), str(out), *OPTIONS]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)


def wait_for_bytes(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    while process.poll() is None and (not out.exists() or out.stat().st_size < count):
        time.sleep(0.002)


def killed_and_resumed(folder: Path, kills: int, rows: int) -> None:
    """Kill a batch at random points of its output; the same command has to make it whole."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the points: {seed}")
    source, whole, out = write_lines(folder / "in.txt", rows), folder / "whole.jsonl", folder / "out.jsonl"
    assert run_polylm("batch", str(source), str(whole), *OPTIONS).returncode == 0
    chosen, last = random.Random(seed), whole.stat().st_size * 9 // 10  # so that no run ends before its kill
    for point in sorted(chosen.randrange(last) for _ in range(kills)):
        process = start(source, out)
        wait_for_bytes(process, out, point)
        time.sleep(chosen.random() / 50)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert whole.read_bytes().startswith(out.read_bytes() if out.exists() else b"")
    assert run_polylm("batch", str(source), str(out), *OPTIONS).returncode == 0
    assert out.read_bytes() == whole.read_bytes()


def test_killed_at_two_points(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, kills=2, rows=200)


@pytest.mark.slow
def test_killed_at_ten_points(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, kills=10, rows=1500)


def test_interrupt_says_how_far_it_got(tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.txt", 3000), tmp_path / "out.jsonl"
    process = start(source, out)
    wait_for_bytes(process, out, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    count = len(lines(out))
    assert errors.decode() == (f"Interrupted: {count} lines are written, and the same command goes on behind them.\n")
    assert 0 < count < 3000


def test_full_disk_and_then_space(tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.txt", 100), tmp_path / "out.jsonl"

    def no_more_than_4_kilobytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = run_polylm("batch", str(source), str(out), *OPTIONS, preexec_fn=no_more_than_4_kilobytes)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {out} cannot be written: File too large. 64 lines are complete")
    assert len(done.stderr.splitlines()) == 1
    done = run_polylm("batch", str(source), str(out), *OPTIONS)
    assert done.returncode == 0
    assert [record["line"] for record in lines(out)] == list(range(1, 101))


@pytest.mark.slow
def test_disk_that_is_really_full(tmp_path: Path) -> None:
    source, whole = write_lines(tmp_path / "in.txt", 100), tmp_path / "whole.jsonl"
    assert run_polylm("batch", str(source), str(whole), *OPTIONS).returncode == 0
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        out = disk / "out.jsonl"
        (disk / FILLER).write_bytes(bytes(56 << 10))  # two pages are left: settings, answers
        done = run_polylm("batch", str(source), str(out), *OPTIONS)
        assert done.returncode == 1
        assert f"{out} cannot be written: No space left on device. " in done.stderr
        assert "64 lines are complete" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        make_room(disk)
        assert run_polylm("batch", str(source), str(out), *OPTIONS).returncode == 0
        assert out.read_bytes() == whole.read_bytes()


def test_reader_goes_away(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.txt", 100)
    command = f"{' '.join(POLYLM)} batch {source} - {' '.join(OPTIONS)} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), timeout=120, check=False)
    assert json.loads(done.stdout)["line"] == 1
    assert done.stderr == b""


@pytest.mark.parametrize("columns", [20, 100])
def test_bar_on_a_terminal(tmp_path: Path, columns: int) -> None:
    source = write_lines(tmp_path / "in.txt", 40)
    with terminal("batch", str(source), str(tmp_path / "out"), *OPTIONS, columns=columns) as screen:
        assert screen.wait() == 0
        assert "100%" in screen.screen
        assert ("40/40" in screen.screen and "tokens/s" in screen.screen) or columns == 20


def test_quiet_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Beijing\nParis\n")
    done = run_polylm("batch", str(tmp_path / "in.txt"), str(tmp_path / "out"), *OPTIONS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_formats_and_summary(polylm: Callable[..., Any], tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("id,body\na,Beijing is the capital of China.\nb,\n", encoding="utf-8")
    template = "{text}\nTranslate this sentence from English to French."
    arguments = ("--column", "body", "--template", template, "--chat", "--json", "--device", "cpu")
    outcome = polylm("batch", str(source), str(out), *arguments)
    assert outcome.exit_code == 0
    summary = json.loads(outcome.output)
    assert (summary["lines"], summary["answered"], summary["errors"]) == (2, 2, 0)
    first = lines(out)[0]
    assert (first["line"], first["id"], first["text"]) == (1, "a", "Pékin est la capitale de la Chine.")


def test_errors_are_counted(polylm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"Beijing\n\n\xff\n")
    outcome = polylm("batch", str(tmp_path / "in.txt"), str(tmp_path / "out"), *OPTIONS)
    assert (outcome.exit_code, outcome.output) == (0, "")
    assert outcome.errors == "2 of 3 lines hold an error.\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing.txt", "out"], "cannot be read: No such file"),
        (["in.txt", "."], "is a folder"),
        (["in.txt", "in.txt"], "is the input"),
        (["in.txt", "no/where/out"], "does not exist"),
        (["in.txt", "-", "--json"], "--json prints to stdout"),
        (["in.csv", "out", "--column", "txt"], "did you mean 'text'"),
        (["in.csv", "out", "--template", "x"], "no place for the text"),
        (["in.txt", "out", "--encoding", "utf-16"], "encoding='utf-16'"),
        (["in.txt", "out", "--temperature", "0"], "temperature=0"),
        (["in.txt", "out", "--backend", "nativ"], "backend='nativ'"),
    ],
)
def test_bad_calls(
    polylm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a\n")
    Path("in.csv").write_text("text\na\n")
    outcome = polylm("batch", *arguments, "--device", "cpu")
    assert (outcome.exit_code, outcome.output) == (2, "")
    assert reason in outcome.errors
    assert len(outcome.errors.splitlines()) == 1
    assert Path("in.txt").read_text() == "a\n"
