"""`polylm bench`: its options reach the benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_polylm.cli.bench import report as reports
from modelscope_polylm.cli.bench import run
from modelscope_polylm.cli.bench.engines import PolyLMEngine
from modelscope_polylm.cli.bench.report import Measurement, Report
from modelscope_polylm.cli.bench.run import check_memory, compute_rate, least_seconds, measure
from modelscope_polylm.cli.bench.workloads import WORKLOADS, Workload, random_snapshot, shape_config
from modelscope_polylm.errors import DeviceError, install_command
from modelscope_polylm.generation.outputs import Completion
from modelscope_polylm.snapshot import open_snapshot

SMALL = Workload("greedy, 1 row, 4 + 2", 1, 4, 2, {"do_sample": False, "num_beams": 1})

SMALL_POINTS = (
    Workload("greedy, 1 row, 4 + 3", 1, 4, 3, {"num_beams": 1}, "ms/token"),
    Workload("greedy, 2 rows, 4 + 2", 2, 4, 2, {"num_beams": 1}, "tokens/s"),
)
PLOT = ("--shape", "small", "--engines", "polylm", "--works", "1", "--works", "2", "--repeats", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr("modelscope_polylm.cli.bench.workloads.WORKLOADS", (SMALL, *SMALL_POINTS, *WORKLOADS[3:]))


def test_table_and_file(polylm: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ("--shape", "small", "--engines", "polylm", "--works", "0", "--repeats", "2", "--device", "cpu")
    outcome = polylm("bench", *arguments, "--out", str(out))
    assert outcome.exit_code == 0
    assert outcome.output.splitlines()[1].startswith(SMALL.name)
    assert len(json.loads(out.read_text())["results"][0]["seconds"]) == 2
    (result,) = json.loads(polylm("bench", *arguments, "--json").output)["results"]
    assert (result["work"], result["engine"], len(result["seconds"])) == (SMALL.name, "polylm", 2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--shape", "13"], "did you mean 13b?"),
        (["--engines", "transformer"], "did you mean transformers?"),
        (["--engines", "x"], "choose one of polylm"),
        (["--works", "99"], "works=99"),
        (["--repeats", "0"], "--repeats"),
        (["--shape", "small", "--out", "/no/where/x"], "does not exist"),
        (["--shape", "small", "--device", "tpu"], "Unknown device"),
        (["--shape", "small", "--plot", "curve.txt"], "end it in .png"),
        (["--shape", "small", "--plot", "/no/where/x.png"], "does not exist"),
        (["--shape", "small", "--works", "0", "--plot", "x.png"], "None of the chosen works"),
        (["--model", "tiny", "--shape", "small"], "name one of them"),
        (["--model", "nosuch"], "'nosuch' is no folder"),
        (["--plot-from", "bench.json"], "add --plot FILE.png"),
        (["--plot-from", "/no/where/x.json", "--plot", "x.png"], "/no/where/x.json"),
        (["--plot-from", __file__, "--plot", "x.png"], "holds no figures"),
    ],
)
def test_bad_calls(polylm: Callable[..., Any], arguments: list[str], reason: str) -> None:
    outcome = polylm("bench", *arguments)
    assert outcome.exit_code in (1, 2)
    assert outcome.output == ""
    assert reason in outcome.errors
    assert len(outcome.errors.splitlines()) == 1


@pytest.mark.parametrize("engine", ["polylm", "transformers", "transformers-static"])
def test_every_engine_runs_a_snapshot_with_its_own_weights(
    polylm: Callable[..., Any], random_snapshot: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    made: list[Any] = []
    make = run.ENGINES[engine]
    monkeypatch.setitem(run.ENGINES, engine, lambda *given: made.append(make(*given)) or made[-1])
    arguments = ("--engines", engine, "--works", "0", "--repeats", "1", "--device", "cpu", "--dtype", "float32")
    outcome = polylm("bench", "--model", str(random_snapshot), *arguments, "--json")
    assert outcome.exit_code == 0, outcome.errors
    report = json.loads(outcome.output)
    assert (report["shape"], [result["new"] for result in report["results"]]) == (str(random_snapshot), [2])
    snapshot = open_snapshot(random_snapshot)
    weights = snapshot.weight_files.load(snapshot.config, torch.device("cpu"), torch.float32)
    ours = engine == "polylm"
    held = made[0].backend.engine.decoder.embedding if ours else made[0].model.transformer.wte.weight
    assert torch.equal(held, weights["wte.weight"])


def test_quantised_engines_are_measured_in_turn(polylm: Callable[..., Any]) -> None:
    arguments = ("--shape", "small", "--engines", "polylm", "--works", "0", "--repeats", "1", "--device", "cpu")
    kinds = ("--quantization", "none", "--quantization", "int4", "--kv-cache-dtype", "int8")
    outcome = polylm("bench", *arguments, *kinds, "--json")
    assert outcome.exit_code == 0, outcome.errors
    names = [result["engine"] for result in json.loads(outcome.output)["results"]]
    assert names == ["polylm int8 cache", "polylm int4 int8 cache"]
    assert polylm("bench", *arguments, "--quantization", "int3").exit_code == 2


def test_works_that_do_not_fit_are_left_out(polylm: Callable[..., Any], random_snapshot: Path) -> None:
    arguments = ("--model", str(random_snapshot), "--engines", "polylm", "--repeats", "1", "--device", "cpu")
    outcome = polylm("bench", *arguments, "--works", "0", "--works", "7", "--json")
    assert [result["work"] for result in json.loads(outcome.output)["results"]] == [SMALL.name]
    positions = open_snapshot(random_snapshot).config.max_positions
    assert f"{WORKLOADS[7].name:30} left out: it needs more than {positions} positions" in outcome.errors
    outcome = polylm("bench", *arguments, "--works", "7")
    assert outcome.exit_code == 2
    assert f"fits into the network's {positions} positions" in outcome.errors.splitlines()[-1]


def test_answers_that_end_too_early_give_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PolyLMEngine(random_snapshot("small"), torch.device("cpu"), torch.float32)
    workload = Workload("greedy, 2 rows, 4 + 3", 2, 4, 3, {"do_sample": False, "num_beams": 1})
    engine.run(workload)
    answers = [[Completion([5])], [Completion([6, 7])]]
    monkeypatch.setattr(engine.backend, "generate", lambda prompts, options: answers)
    with pytest.raises(RuntimeError, match="ended after 2 of 3 tokens"):
        engine.run(workload)
    answers[1][0].ids.append(8)
    engine.run(workload)


def test_a_cpu_is_told_what_the_run_takes(polylm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "compute_rate", lambda device, dtype: 1e3)
    arguments = ("--engines", "polylm", "--works", "0", "--repeats", "1", "--device", "cpu", "--json")
    outcome = polylm("bench", "--shape", "small", *arguments)
    assert outcome.exit_code == 0
    expected = 2 * least_seconds(shape_config("small"), [SMALL], 0.0, 1e3) / 3600
    size = "engines: 1, works: 1, calls of each: 2"
    assert f"This takes at least {expected:.1f} hours on this CPU ({size}). --engines" in outcome.errors
    monkeypatch.setattr(run, "free_bytes", lambda device: 10e6)
    outcome = polylm("bench", "--shape", "small", *arguments)
    assert outcome.exit_code == 1
    assert "GB for weights and KV cache" in outcome.errors
    assert "choose a smaller --shape" in outcome.errors


def test_memory_and_time_follow_from_the_sizes() -> None:
    config, beams = shape_config("13b"), Workload("", 2, 10, 6, {"num_beams": 4})
    weights, cache = 2 * config.parameters, 2 * 8 * 16 * 2 * config.layers * config.hidden_size
    check_memory("13b", config, [beams, SMALL], torch.bfloat16, weights + cache)
    with pytest.raises(DeviceError, match=r"13b in bfloat16 needs 27\.9 GB .* 27\.8 GB are free"):
        check_memory("13b", config, [beams, SMALL], torch.bfloat16, weights + cache - 1e8)
    # bound by reading: a prefill and five steps; the workload of further tokens has a prefill of its own
    further = Workload("", 1, 10, 6, {}, "ms/token")
    assert least_seconds(config, [beams], 0.5, 1e18) == pytest.approx(3)
    assert least_seconds(config, [further], 0.5, 1e18) == pytest.approx(3.5)
    # bound by computing: every step computes all sequences, the prefill the layers alone
    layers = config.parameters - 256_000 * 5120
    expected = (2 * layers * 2 * 10 + 5 * 2 * config.parameters * 8) / 1e9
    assert least_seconds(config, [beams], 0.0, 1e9) == pytest.approx(expected)
    assert compute_rate(torch.device("cpu"), torch.float32) > 1e8


class Clock:
    """An engine whose prefill takes 0.1 s, and each further token 0.01 s."""

    name = "clock"

    def __init__(self) -> None:
        self.now = 0.0

    def run(self, work: Workload) -> None:
        self.now += 0.1 + 0.01 * (work.new - 1)


def test_prefill_does_not_count_in_a_further_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    result = measure(clock, Workload("", 1, 512, 33, {}, "ms/token"), repeats=2)  # type: ignore[arg-type]
    assert result.value == pytest.approx(10)
    assert measure(clock, Workload("", 1, 512, 33, {}), repeats=2).value == pytest.approx(420 / 33)  # type: ignore[arg-type]


def test_every_point_of_the_plots_is_measured_by_default() -> None:
    assert [work.prompt for work in WORKLOADS if work.unit == "ms/token"] == [32, 512, 1024, 1800]
    assert sorted(work.rows for work in WORKLOADS if work.unit == "tokens/s") == [1, 4, 16, 64]


def test_plot_of_a_run_and_of_its_file(polylm: Callable[..., Any], tmp_path: Path) -> None:
    drawn, again, figures = tmp_path / "drawn.png", tmp_path / "again.png", tmp_path / "bench.json"
    assert polylm("bench", *PLOT, "--out", str(figures), "--plot", str(drawn)).exit_code == 0
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert polylm("bench", "--plot-from", str(figures), "--plot", str(again)).exit_code == 0
    assert again.read_bytes() == drawn.read_bytes()
    assert polylm("bench", "--plot-from", str(figures), "--plot", "/proc/x.png").errors.startswith(
        "Error: Cannot write"
    )


def point(engine: str, rows: int, prompt: int, unit: str, value: float) -> Measurement:
    return Measurement("work", engine, rows, prompt, 128, unit, value, 1.0, (1.0,), 0)


def report(*results: Measurement, device: str = "card") -> Report:
    return Report("13b", "bfloat16", device, "2.11", 6.5, list(results))


def test_curves_of_several_files(tmp_path: Path) -> None:
    files = [tmp_path / "ours.json", tmp_path / "theirs.json"]
    ours = [point("polylm", 1, prompt, "ms/token", 7 + prompt / 1e3) for prompt in (512, 32)]
    files[0].write_text(report(*ours, point("polylm", 4, 128, "tokens/s", 500)).json())
    files[1].write_text(report(point("transformers", 1, 32, "ms/token", 16)).json())
    reports.draw_files(files, tmp_path / "both.svg")
    picture = (tmp_path / "both.svg").read_text()
    assert all(f"<!-- {label} -->" in picture for label in ("polylm", "transformers", "rows"))
    files[1].write_text(report(device="another card").json())
    with pytest.raises(ValueError, match=r"theirs\.json was measured with device 'another card'"):
        reports.draw_files(files, tmp_path / "both.svg")


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Nothing to draw"):
        reports.draw(report(point("polylm", 1, 32, "ms/step", 7)), tmp_path / "nothing.png")


def test_without_matplotlib(polylm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = polylm("bench", *PLOT, "--plot", str(tmp_path / "x.png"))
    assert outcome.exit_code == 1
    assert install_command("plot") in outcome.errors
