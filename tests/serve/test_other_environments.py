"""LangChain and schemathesis, in an environment of their own; and a short load."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from tests.interop.environments import python_of
from tests.processes import environment
from tests.serve.running import ANSWER, QUESTION, Running, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LANGCHAIN = Path(__file__).with_name("with_langchain.py")


def run(*command: str, expected: int = 0) -> str:
    done = subprocess.run(
        [str(python_of("clients")), *command], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == expected, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_langchain(server: Running) -> None:
    seen: dict[str, Any] = json.loads(run(str(LANGCHAIN), f"{server.url}/v1", QUESTION))
    assert {seen["whole"], seen["chain"], *seen["batch"], *seen["together"], "".join(seen["chunks"])} == {ANSWER}
    assert sum(map(bool, seen["chunks"])) > 3
    assert seen["tokens"]["output_tokens"] == seen["chunk tokens"] == 8
    assert seen["cut"] == seen["logprobs"] == "Rom ist die Hauptstadt"
    assert len(seen["beams"]) == 2
    assert seen["beams"][0] == ANSWER
    assert seen["conversation"]
    assert seen["system"] and "Error" not in seen["system"]
    assert "The last user message makes a prompt of" in seen["too long"]


def test_schemathesis_finds_no_server_error(tiny: TextGenerator, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with serving(tiny) as server:
        run(
            *("-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error"),
            *("--max-examples", "450", "--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
            *("--request-timeout", "60"),
            *("--generation-deterministic", "--report", "json", "--report-json-path", str(report)),
        )
        metrics = server.http.get("/metrics").text
        assert server.is_idle()
    cases = json.loads(report.read_text())["test_cases"]
    assert cases["generated"] >= 2000
    assert cases["with_failures"] == cases["errored"] == 0
    assert 'status="5' not in metrics
    for path in ("/v1/chat/completions", "/v1/completions"):  # it got as far as answers
        assert f'polylm_requests_total{{path="{path}",status="200"}}' in metrics


def test_load() -> None:
    from benchmarks.serving import measure_load

    figures = measure_load(clients=32, seconds=15)
    phases = [figures[name] for name in ("one client", "32 clients", "64 clients", "one client again")]
    assert [phase["wrong answers or errors"] for phase in phases] == [0, 0, 0, 0]
    assert [phase["refused with 429"] > 0 for phase in phases] == [False, False, True, False]
    assert "none" not in figures["64 clients"]["their Retry-After"]
    assert all(phase["answers"] >= 100 for phase in phases)
