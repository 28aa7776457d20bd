"""benchmarks/vllm_backend.py: the figures of engines that run one after the other, vLLM itself left out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import vllm_backend
from benchmarks.vllm_rounds import WARM_UP_ROUNDS, Setting, fresh_prompts, seconds, timed_rounds

STARTED = {
    "import_seconds": 1.0,
    "start_seconds": 30.0,
    "device": "CPU",
    "versions": {"vllm": "0.32.0"},
    "max_num_seqs": 256,
    "max_num_batched_tokens": 4096,
    "cache_tokens": 255,
}
WORK = "greedy, 1 row, 128 + 128"
SETTING = Setting("tiny", "cpu", {}, (1, 4), prompt=6, new=3, repeats=4)


def result(engine: str, value: float) -> dict[str, Any]:
    speeds = {"value": value, "ms_per_step": 1e3 / value, "seconds": [1.0]}
    return {"work": WORK, "engine": engine, "unit": "tokens/s", "rows": 1, **speeds}


def run(monkeypatch: pytest.MonkeyPatch, processes: list[Any], *arguments: str) -> None:
    """The command, the engines' processes replaced; an exception ends one of them."""
    waiting = iter(processes)

    def run_apart(*_: Any) -> Iterator[dict[str, Any]]:
        for message in next(waiting):
            if isinstance(message, Exception):
                raise message
            yield dict(message)

    monkeypatch.setattr(vllm_backend, "run_apart", run_apart)
    monkeypatch.setattr(sys, "argv", ["vllm_backend", "--rows", "1", "--device", "cpu", *arguments])
    vllm_backend.main()


def test_shares_are_of_the_fastest_direct_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [STARTED, result("polylm vllm", 98.0), result("polylm vllm, stream", 90.0)]
    processes = [[STARTED, result("vllm", 80.0)], ours, [STARTED, result("vllm", 100.0)]]
    run(monkeypatch, processes, "--out", str(tmp_path / "out.json"), "--tensor-parallel", "2")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert [(each["engine"], each["share"]) for each in facts["results"]] == [
        ("vllm", 0.8),
        ("polylm vllm", 0.98),
        ("polylm vllm, stream", 0.9),
        ("vllm, run 2", 1.0),
    ]
    assert [each["engine"] for each in facts["engines"]] == ["vllm", "polylm", "vllm, run 2"]
    assert (facts["gpus"], facts["options"]["tensor_parallel_size"]) == (2, 2)
    assert facts["options"]["gpu_memory_utilization"] == 0.1
    printed = capsys.readouterr().out
    assert "engine ready 30.0 s later" in printed and "too few for all rows at once, which need 256" in printed
    assert "13b on 2 x CPU, vllm 0.32.0" in printed
    assert "98.0 tokens/s    10.204 ms/step    0.980" in printed


def test_figures_outlive_an_engine_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="exit code 1"):
        run(monkeypatch, [[STARTED, result("vllm", 80.0)], [RuntimeError("exit code 1")]], "--out", str(file))
    facts = json.loads(file.read_text())
    assert [each["value"] for each in facts["results"]] == [80.0]


def test_no_direct_run_no_shares() -> None:
    assert [each["share"] for each in vllm_backend.with_shares([result("polylm vllm", 1.0)])] == [None]


@pytest.mark.parametrize("arguments", [("--order", "vllm,other"), ("--out", "/no/such/folder/out.json")])
def test_bad_arguments_are_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, [], *arguments)


def test_prompts_are_fresh_in_every_round_and_the_same_for_every_engine() -> None:
    rounds = [(stream, rows, number) for stream in (False, True) for rows in (1, 4) for number in range(-2, 4)]
    prompts = [ids for each in rounds for ids in fresh_prompts(*each, length=6, vocabulary=1000)]
    assert len({tuple(ids) for ids in prompts}) == len(prompts)
    assert all(len(ids) == 6 and all(4 <= token < 1000 for token in ids) for ids in prompts)
    assert fresh_prompts(False, 4, 2, 6, 1000) == fresh_prompts(False, 4, 2, 6, 1000)


def test_rounds_count_behind_the_warm_up_and_take_turns() -> None:
    calls: list[str] = []

    def contender(name: str) -> Any:
        def call(prompts: list[list[int]], new: int) -> list[list[int]]:
            calls.append(name)
            return [[0] * new for _ in prompts]

        return call

    names = ["polylm vllm", "polylm vllm, stream"]
    results = list(timed_rounds({name: contender(name) for name in names}, 1000, 4, SETTING))
    assert [each["engine"] for each in results] == names
    assert all(len(each["seconds"]) == SETTING.repeats and each["rows"] == 4 for each in results)
    assert results[0]["work"] == "greedy, 4 rows, 6 + 3"
    rounds = [calls[first : first + 2] for first in range(0, len(calls), 2)]
    assert len(rounds) == SETTING.repeats + WARM_UP_ROUNDS
    assert [names[number % 2] for number in range(len(rounds))] == [first for first, _ in rounds]


def test_an_answer_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended early"):
        seconds(lambda prompts, new: [[1]], [[5]], 2)
