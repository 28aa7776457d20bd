"""The benchmarks in small sizes on a CPU; vLLM's process is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import arrivals, kernels, loading, ragged, serving_costs, translation, vllm_backend
from benchmarks.fresh_process import in_fresh_process
from benchmarks.serving_costs import PAGE, bytes_per_token, cost_lines, price_of, result_files, sizing_lines, speeds
from benchmarks.snapshot_files import check_space, planned_shards, stored_bytes, write_snapshot
from benchmarks.vllm_backend import WARM_UP_ROUNDS, fresh_prompts, seconds, timed_rounds
from modelscope_polylm.cli.bench.engines import PolyLMEngine
from modelscope_polylm.cli.bench.workloads import BEAMS, GREEDY, random_snapshot
from modelscope_polylm.network.kernels.dispatch import triton_available
from modelscope_polylm.snapshot import open_snapshot

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def numbers(count: int, end: str) -> Iterator[int]:
    yield from range(count)
    if end == "error":
        raise ValueError("for a person")
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_from_another_process() -> None:
    assert list(in_fresh_process(numbers, 3, "")) == [0, 1, 2]


@pytest.mark.parametrize(("end", "code"), [("error", "1"), ("killed", "-9")])
def test_a_process_that_fails(end: str, code: str) -> None:
    results = in_fresh_process(numbers, 2, end)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RuntimeError, match=f"numbers ended with exit code {code}"):
        next(results)


class TestLoading:
    def test_both_layouts_are_timed_one_after_the_other(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(loading, "PROCESSES", 1)
        folder = tmp_path / "new"
        both = Namespace(read_only=False, layout=["bin", "safetensors"], shape="small", device="cpu", folder=folder)
        found = list(loading.measured(both))
        assert [(each["layout"], each["process"]) for each in found] == [("bin", 1), ("safetensors", 1)]
        assert not list(folder.iterdir())
        for figures in found:
            assert figures["bytes"] == stored_bytes("small", "safetensors")
            assert all(each > 0 for each in [*figures["seconds"].values(), *figures["rates"].values()])
            assert {f"read by {loading.READERS} threads", "the library's loader"} < figures["rates"].keys()
            printed = "\n".join(loading.lines(figures))
            assert "load again" in printed and "of which loading reaches" in printed

    def test_nothing_is_left_where_a_process_fails(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(loading, "in_fresh_process", lambda *_: numbers(0, "error"))
        one = Namespace(read_only=False, layout=["bin"], shape="small", device="cpu", folder=tmp_path)
        with pytest.raises(ValueError, match="for a person"):
            list(loading.measured(one))
        assert not list(tmp_path.iterdir())

    def test_every_byte_is_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        contents = [os.urandom(2_500_000), os.urandom(1_000_003)]
        files = [tmp_path / "a", tmp_path / "b"]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        read: list[bytes] = []
        preadv = os.preadv

        def recorded(descriptor: int, buffers: Sequence[bytearray], start: int) -> int:
            count = preadv(descriptor, buffers, start)
            read.append(bytes(buffers[0][:count]))
            return count

        monkeypatch.setattr(loading, "CHUNK_BYTES", 1_000_003)
        monkeypatch.setattr(loading.os, "preadv", recorded)
        assert loading.read_rate(files, 1) > 0
        assert b"".join(read) == b"".join(contents)


def test_too_little_space(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="choose another"):
        check_space(tmp_path, 10**18)


def test_pickles_hold_what_the_published_ones_hold(tmp_path: Path) -> None:
    assert round(stored_bytes("13b", "bin") / 1e9, 1) == 30.8
    assert len(planned_shards("13b", "safetensors")) > 4
    write_snapshot(tmp_path, "small", "bin")
    snapshot = open_snapshot(tmp_path)
    weights = snapshot.weight_files.load(snapshot.config, CPU, torch.float32)
    (file,) = tmp_path.glob("*.bin")
    stored = torch.load(file)
    assert torch.equal(stored["lm_head.weight"].float(), weights["wte.weight"])
    assert stored["transformer.h.1.attn.bias"].shape == (1, 1, 2048, 2048)


def test_random_snapshots_have_a_tokenizer_of_the_whole_vocabulary(tmp_path: Path) -> None:
    write_snapshot(tmp_path, "small", "safetensors")
    tokenizer = open_snapshot(tmp_path).tokenizer
    assert tokenizer.vocab_size == 4000
    assert [tokenizer.decode([token]).strip() for token in (500, 3000, 3999)] == ["dell", "word3000", "word3999"]


class TestArrivals:
    def test_times_are_those_of_a_poisson_process_and_the_same_in_every_run(self) -> None:
        times = arrivals.arrivals(1000, 4.0)
        assert times == sorted(arrivals.arrivals(1000, 4.0))
        assert 225 < times[-1] < 275
        assert arrivals.arrivals(3, None) == [0.0, 0.0, 0.0]

    def test_the_server_answers_at_random_times(self, tmp_path: Path) -> None:
        package = arrivals.written_package(tmp_path / "new", "small")
        assert [path.name for path in (tmp_path / "new").iterdir()] == [package.name]
        setting = Namespace(shape="small", requests=3, shares=[0.5])
        at_once, spread = arrivals.measured("polylm", package, [], setting)
        assert at_once["rate"] is None
        assert spread["rate"] == round(0.5 * at_once["requests/s"], 2)
        assert [found["answers"] for found in (at_once, spread)] == [3, 3]
        assert at_once["first text ms"]["p50"] > at_once["between texts ms"]["p50"] > 0


class TestRagged:
    def test_lengths_are_drawn_once_and_prompts_are_fresh(self) -> None:
        sizes = ragged.lengths(256)
        assert sizes == ragged.lengths(256)
        assert ragged.summary(sizes) == {"prompt_mean": 101.3828125, "answer_mean": 166.70703125, "answer_max": 768}
        rounds = [ragged.fresh_requests(20, number, 4000) for number in (-1, 0, 1)]
        assert all([(len(each.prompt), each.new) for each in requests] == sizes[:20] for requests in rounds)
        assert len({tuple(each.prompt) for requests in rounds for each in requests}) == 60

    @pytest.mark.parametrize("options", [GREEDY, BEAMS])
    def test_every_answer_has_its_own_length(self, options: dict[str, Any]) -> None:
        engine = PolyLMEngine(random_snapshot("small"), CPU, torch.float32)
        requests = [ragged.Request([5, 6, 7][:size], new) for size, new in ((1, 2), (3, 5), (2, 4))]
        assert [ragged.run_ours(engine, requests, options, at_once) for at_once in (None, 1)] == [[2, 5, 4]] * 2

    def test_figures_of_both_searches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ragged, "lengths", lambda count: [(3, 2 + number) for number in range(count)])
        setting = ragged.Setting("small", "cpu", "float32", 4, 2, 3, at_once=None, repeats=2, quantization="int8")
        *found, first, second = ragged.measured("polylm", setting)
        assert [(each["work"], each["tokens"]) for each in found] == [
            *[("greedy, 4 requests", 14)] * 2,
            *[("4 beams, 2 requests", 5)] * 2,
        ]
        for result in found:
            assert result["value"] == pytest.approx(result["tokens"] / result["seconds"])
            assert f"{result['tokens']} tokens in" in ragged.line(result)
        for result in (first, second):
            assert (result["work"], result["engine"]) == ("prefix, 3 requests", "polylm int8")
            assert result["value"] == pytest.approx(result["seconds"] / result["first_seconds"])
            assert "ms, the others" in ragged.line(result)


class TestTranslation:
    def test_three_ways(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["translation", "--lines", "6", "--alone", "2", "--repeats", "1"])
        translation.main()
        speeds = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
        assert list(speeds) == ["document", "one at a time", "engine alone"]
        assert all(float(text.split()[0]) > 0 for text in speeds.values())

    def test_sentences_differ(self) -> None:
        assert len(set(translation.sentences(1024))) == 1024
        with pytest.raises(SystemExit, match="1024 sentences"):
            translation.sentences(1025)


class TestKernels:
    @pytest.mark.skipif(not triton_available(), reason="triton is not installed")
    @pytest.mark.slow
    def test_every_kernel_is_right_under_the_interpreter(self, tmp_path: Path) -> None:
        out = tmp_path / "kernels.json"
        command = [sys.executable, "-m", "benchmarks.kernels", "--interpret", "--rows", "4", "--out", str(out)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr
        names = [result["operation"] for result in json.loads(out.read_text())["results"]]
        expected = ["c_fc, 4 rows", "mlp.c_proj, 4 rows", "LM head, 4 rows, best 8", "prefill attention, 2 x 70"]
        expected.append("beam step, 2 x 3 beams")
        assert set(expected) < set(names)
        assert len(result.stdout.splitlines()) == 2 + len(names)

    @pytest.mark.parametrize(("factor", "error"), [(1.0, 0.0), (1.01, 0.01), (float("nan"), float("inf"))])
    def test_a_wrong_result_shows(self, factor: float, error: float) -> None:
        x = torch.ones(4, 8)
        operation = kernels.Operation("x", 128, [(x,)], lambda x: (x, factor * x), lambda x: (x.double(), x.double()))
        assert kernels.figures(operation, 1e9)["error"] == pytest.approx(error)


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


def speed(engine: str, value: float) -> dict[str, Any]:
    speeds = {"value": value, "ms_per_step": 1e3 / value, "seconds": [1.0]}
    return {"work": WORK, "engine": engine, "unit": "tokens/s", "rows": 1, **speeds}


class TestVLLMBackend:
    @staticmethod
    def run(monkeypatch: pytest.MonkeyPatch, processes: list[Any], *arguments: str) -> None:
        """The command, the engines' processes replaced; an exception ends one of them."""
        waiting = iter(processes)

        def in_fresh_process(*_: Any) -> Iterator[dict[str, Any]]:
            for message in next(waiting):
                if isinstance(message, Exception):
                    raise message
                yield dict(message)

        monkeypatch.setattr(vllm_backend, "in_fresh_process", in_fresh_process)
        monkeypatch.setattr(sys, "argv", ["vllm_backend", "--rows", "1", "--device", "cpu", *arguments])
        vllm_backend.main()

    def test_shares_are_of_the_fastest_direct_run(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ours = [STARTED, speed("polylm vllm", 98.0), speed("polylm vllm, stream", 90.0)]
        processes = [[STARTED, speed("vllm", 80.0)], ours, [STARTED, speed("vllm", 100.0)]]
        self.run(monkeypatch, processes, "--out", str(tmp_path / "out.json"), "--tensor-parallel", "2")
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

    def test_figures_outlive_an_engine_that_fails(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "out.json"
        with pytest.raises(SystemExit, match="exit code 1"):
            processes = [[STARTED, speed("vllm", 80.0)], [RuntimeError("exit code 1")]]
            self.run(monkeypatch, processes, "--out", str(file))
        facts = json.loads(file.read_text())
        assert [each["value"] for each in facts["results"]] == [80.0]

    def test_no_direct_run_no_shares(self) -> None:
        assert [each["share"] for each in vllm_backend.with_shares([speed("polylm vllm", 1.0)])] == [None]

    @pytest.mark.parametrize("arguments", [("--order", "vllm", "other"), ("--out", "/no/such/folder/out.json")])
    def test_bad_arguments_are_refused_before_anything_starts(
        self, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
    ) -> None:
        with pytest.raises(SystemExit):
            self.run(monkeypatch, [], *arguments)

    def test_prompts_are_fresh_in_every_round_and_the_same_for_every_engine(self) -> None:
        rounds = [(stream, rows, number) for stream in (False, True) for rows in (1, 4) for number in range(-2, 4)]
        prompts = [ids for each in rounds for ids in fresh_prompts(*each, length=6, vocab_size=1000)]
        assert len({tuple(ids) for ids in prompts}) == len(prompts)
        assert all(len(ids) == 6 and all(4 <= token < 1000 for token in ids) for ids in prompts)
        assert fresh_prompts(False, 4, 2, 6, 1000) == fresh_prompts(False, 4, 2, 6, 1000)

    def test_rounds_count_after_the_warm_up_and_take_turns(self) -> None:
        calls: list[str] = []

        def generate(name: str) -> vllm_backend.Generate:
            def call(prompts: list[list[int]], new: int) -> list[list[int]]:
                calls.append(name)
                return [[0] * new for _ in prompts]

            return call

        names = ["polylm vllm", "polylm vllm, stream"]
        setting = vllm_backend.Setting("tiny", "cpu", {}, (1, 4), prompt=6, new=3, repeats=4)
        results = list(timed_rounds({name: generate(name) for name in names}, 1000, 4, setting))
        assert [each["engine"] for each in results] == names
        assert all(len(each["seconds"]) == setting.repeats and each["rows"] == 4 for each in results)
        assert results[0]["work"] == "greedy, 4 rows, 6 + 3"
        rounds = [calls[first : first + 2] for first in range(0, len(calls), 2)]
        assert len(rounds) == setting.repeats + WARM_UP_ROUNDS
        assert [names[number % 2] for number in range(len(rounds))] == [first for first, _ in rounds]

    def test_an_answer_that_ends_early_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="ended early"):
            seconds(lambda prompts, new: [[1]], [[5]], 2)


class TestServingCosts:
    def test_the_page_is_up_to_date(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        assert serving_costs.renewed(page, result_files(), price_of(page)) == page, (
            "run: python -m benchmarks.serving_costs --write docs/scale.md"
        )
        assert "819,200 bytes" in page and "a million output tokens at" in page

    def test_memory(self) -> None:
        assert (bytes_per_token("13b"), bytes_per_token("1.7b")) == (819_200, 196_608)
        expected = "| 13B | 27.81 GB | 819,200 bytes | 1 x 24 GB | does not fit"
        assert any(line.startswith(expected) for line in sizing_lines())

    def test_costs(self, tmp_path: Path) -> None:
        results = [
            {"work": "greedy, 1 row, 32 + 128", "engine": "a", "unit": "ms/step", "value": 10.0},
            {"work": "greedy, 64 rows, 128 + 128", "engine": "a", "unit": "tokens/s", "value": 2000.0},
            {"work": "4 beams, 1 row, 32 + 128", "engine": "a", "unit": "ms/step", "value": 9.0},
        ]
        file = tmp_path / "results.json"
        file.write_text(json.dumps({"device": "x", "results": results}))
        assert [(each.rows, each.tokens_per_second) for each in speeds([file])] == [(1, 100.0), (64, 2000.0)]
        lines = list(cost_lines([file], 3.6))
        assert [line.split("|")[-2].strip() for line in lines[2:]] == ["10.00", "0.50"]
        assert "at 3.60 an hour" in lines[0]
        with pytest.raises(ValueError, match="names no price"):
            price_of("nothing")
