"""benchmarks/loading.py with the small shape on the CPU, and the processes in which benchmarks measure."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import loading, loading_variants
from benchmarks.loading_rates import plain_rate, read_rates
from benchmarks.loading_snapshot import planned_shards, stored_bytes, write_snapshot
from benchmarks.own_process import run_apart
from modelscope_polylm.network import loader as upload
from modelscope_polylm.snapshot import open_snapshot


def numbers(count: int, end: str) -> Iterator[int]:
    yield from range(count)
    if end == "error":
        raise ValueError("for a person")
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_from_another_process() -> None:
    assert list(run_apart(numbers, 3, "")) == [0, 1, 2]


@pytest.mark.parametrize(("end", "code"), [("error", "1"), ("killed", "-9")])
def test_a_process_that_fails(end: str, code: str) -> None:
    results = run_apart(numbers, 2, end)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RuntimeError, match=f"numbers ended with exit code {code}"):
        next(results)


def test_both_layouts_are_timed_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "PROCESSES", 1)
    arguments = {"shape": "small", "device": "cpu", "folder": tmp_path / "new", "threads": [1, 2]}
    both = Namespace(read_only=False, keep=True, layout=["bin", "safetensors"], **arguments)
    found = list(loading.measured(both))
    assert [(each["layout"], each["process"]) for each in found] == [("bin", 1), ("safetensors", 1)]
    assert [folder.name for folder in (tmp_path / "new").iterdir()] == ["safetensors"]
    for figures in found:
        assert figures["bytes"] == stored_bytes("small", "safetensors")
        assert all(each > 0 for each in [*figures["seconds"].values(), *figures["rates"].values()])
        assert {"read mapped, 1 threads", "read preadv, 2 threads"} < figures["rates"].keys()
        printed = "\n".join(loading.lines(figures))
        assert "load again" in printed and "of which loading reaches" in printed


def test_nothing_is_left_where_a_process_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "loading_times", numbers)
    monkeypatch.setattr(loading, "run_apart", lambda work, *_: work(0, "error"))
    arguments = {"shape": "small", "device": "cpu", "folder": tmp_path, "threads": [1]}
    with pytest.raises(ValueError, match="for a person"):
        list(loading.measured(Namespace(read_only=False, keep=False, layout=["bin"], **arguments)))
    assert not list(tmp_path.iterdir())


def test_variants_are_loaded_twice_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("READERS", "CHUNK_BYTES"):
        monkeypatch.setattr(upload, name, getattr(upload, name))
    arguments = ["--shape", "small", "--device", "cpu", "--folder", str(tmp_path), "--variants", "2x1,3x4"]
    monkeypatch.setattr("sys.argv", ["loading_variants", *arguments])
    monkeypatch.setattr(loading_variants, "run_apart", lambda work, *given: work(*given))
    loading_variants.main()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == [
        f"{variant}, {load} load" for variant in ("2x1", "3x4") for load in ("first", "second")
    ]
    assert (upload.READERS, upload.CHUNK_BYTES) == (3, 4 << 20)
    assert not list(tmp_path.iterdir())


def test_too_little_space(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="take another"):
        loading.check_space(tmp_path, 10**18)


def test_pickles_hold_what_the_published_ones_hold(tmp_path: Path) -> None:
    assert round(stored_bytes("13b", "bin") / 1e9, 1) == 30.8
    assert len(planned_shards("13b", "safetensors")) > 4
    write_snapshot(tmp_path, "small", "bin")
    snapshot = open_snapshot(tmp_path)
    weights = snapshot.weight_files.load(snapshot.config, torch.device("cpu"), torch.float32)
    stored = dict(snapshot.weight_files.files[0].tensors(["lm_head.weight", "transformer.h.1.attn.bias"]))
    assert torch.equal(stored["lm_head.weight"].float(), weights["wte.weight"])
    assert stored["transformer.h.1.attn.bias"].shape == (1, 1, 2048, 2048)


def test_every_byte_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_snapshot(tmp_path, "small", "safetensors")
    files = open_snapshot(tmp_path).weight_files.files
    read: list[bytes] = []
    monkeypatch.setattr("benchmarks.loading_rates.CHUNK_BYTES", 1_000_003)
    monkeypatch.setattr("benchmarks.loading_rates.numpy.copyto", lambda buffer, part: read.append(bytes(part)))
    rates = read_rates([file.path for file in files], [1], page_locked=False)
    assert b"".join(read) == files[0].path.read_bytes()
    assert list(rates) == ["mapped, 1 threads", "preadv, 1 threads"]
    assert plain_rate(files, torch.device("cpu")) > 0
