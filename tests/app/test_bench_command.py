"""`polylm bench`: its options reach the benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.app.bench import run
from modelscope_polylm.app.bench.works import WORKS, Work

SMALL = Work("greedy, 1 row, 4 + 2", 1, 4, 2, {"do_sample": False, "num_beams": 1})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr("modelscope_polylm.app.bench.works.WORKS", (SMALL, *WORKS[1:]))


def test_table_and_file(polylm: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ("--shape", "small", "--engines", "polylm", "--works", "0", "--repeats", "2", "--device", "cpu")
    outcome = polylm("bench", *arguments, "--out", str(out))
    assert outcome.exit_code == 0
    assert outcome.output.splitlines()[1].startswith(SMALL.name)
    assert len(json.loads(out.read_text())["results"][0]["seconds"]) == 2
    (result,) = json.loads(polylm("bench", *arguments, "--json").output)
    assert (result["work"], result["engine"], len(result["seconds"])) == (SMALL.name, "polylm", 2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--shape", "13"], "did you mean 13b?"),
        (["--engines", "transformer"], "did you mean transformers?"),
        (["--engines", "x"], "use one of polylm"),
        (["--works", "99"], "works=99"),
        (["--repeats", "0"], "--repeats"),
        (["--shape", "small", "--out", "/no/where/x"], "does not exist"),
        (["--shape", "small", "--device", "tpu"], "Unknown device"),
    ],
)
def test_bad_calls(polylm: Callable[..., Any], arguments: list[str], reason: str) -> None:
    outcome = polylm("bench", *arguments)
    assert outcome.exit_code in (1, 2)
    assert outcome.output == ""
    assert reason in outcome.errors
    assert len(outcome.errors.splitlines()) == 1
