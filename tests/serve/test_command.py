"""`polylm serve` as a command: its refusals, its names, and a process that signals end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelscope_polylm.errors import install_command
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.serve.command import model_names
from tests.commands import Outcome
from tests.http.running import wait_for
from tests.processes import POLYLM, environment
from tests.serve.running import CHAT, COMPLETIONS, LONG, chat, completion

Polylm = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--host", "0.0.0.0"], "set --api-key or POLYLM_API_KEY"),
        (["--host", "0.0.0.0", "--api-key", ""], "set --api-key or POLYLM_API_KEY"),
        (["--backend", "transformers"], "choose native or vllm"),
        (["--", "--tensor-parallel-size", "2"], "--tensor-parallel-size is a flag for vLLM"),
        (["--backend", "vllm", "--num-beams", "2"], "--num-beams is for the native backend"),
        (["--backend", "vllm", "--max-rows", "8"], "--max-rows is for the native backend"),
        (["--backend", "vllm", "--log-level", "error"], "--log-level is for the native backend"),
        (["--backend", "vllm", "--system-message", "refuse"], "--system-message is for the native backend"),
        (["--backend", "vllm", "--device", "cpu"], "--device is for the native backend"),
        (["--backend", "vllm", "--open-metrics"], "--open-metrics is for the native backend"),
        (["--backend", "vllm", "--api-key", "a", "--api-key", "b"], "vLLM's server takes one key"),
        (["--host", "0.0.0.0", "--api-key", "a", "--open-metrics"], "--open-metrics is for loopback"),
        (["--system-message", "ignore"], "choose refuse or prepend"),
        (["--log-format", "xml"], "choose text or json"),
        (["--cors-origin", "example.org"], "must be like https://example.org"),
        (["--num-beams", "4", "--max-rows", "3"], "takes 4 rows"),
        (["--top-p", "3"], "top_p"),
        (["--do-sample", "--num-beams", "2"], "num_beams"),
    ],
)
def test_refusals(polylm: Polylm, arguments: list[str], part: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outcome = polylm("serve", "tiny", "--port", str(port), *arguments)
    assert outcome.exit_code == 2
    assert part in outcome.errors


def test_a_port_that_is_taken(polylm: Polylm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = polylm("serve", "tiny", "--port", str(taken.getsockname()[1]))
    assert outcome.exit_code == 2
    assert "Cannot listen" in outcome.errors


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra(polylm: Polylm, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    outcome = polylm("serve", "tiny")
    assert outcome.exit_code == 1
    assert install_command("serve") in outcome.errors


def test_names(tmp_path: Path) -> None:
    assert model_names("tiny", None)[0] == "tiny"
    assert model_names("tiny", "mine") == ("mine",)
    hub_id = "damo/nlp_polylm_assistant_13b_text_generation"
    assert model_names(hub_id, None)[0] == hub_id
    assert "assistant-13b" in model_names(hub_id, None)
    folder = tmp_path / "my model"
    folder.mkdir()
    assert model_names(str(folder), None) == ("my model",)
    assert model_names("someone/something", None) == ("someone/something",)


class Process:
    """`polylm serve` in a process of its own, ready for requests."""

    def __init__(self, *flags: str, **changes: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        command = [*POLYLM, "serve", *flags, "--port", self.url.rpartition(":")[2]]
        self.process = subprocess.Popen(command, env=environment(**changes), stderr=subprocess.PIPE, text=True)
        wait_for(self._answers, 120)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            time.sleep(0.2)
            return False

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=120)

    def end(self, number: int) -> tuple[int, str]:
        """Its exit code, and what it has written to stderr."""
        os.kill(self.process.pid, number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def test_a_signal_lets_running_requests_end() -> None:
    served = Process(str(TINY_FOLDER), "--num-beams", "1", POLYLM_API_KEY="from-the-environment")
    right = {"Authorization": "Bearer from-the-environment"}
    name = {"model": TINY_FOLDER.name}
    assert served.post(CHAT, chat(**name)).status_code == 401
    assert served.post(CHAT, chat(**name), **right).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        body = {**completion(**LONG, **name), "stream": True}
        running = pool.submit(served.post, COMPLETIONS, body, **right)
        gauge = "polylm_running_rows 1.0"
        wait_for(lambda: gauge in httpx.get(f"{served.url}/metrics", headers=right).text)
        code, errors = served.end(signal.SIGTERM)
        lines = [line.removeprefix("data: ") for line in running.result().text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["choices"][0]["finish_reason"] == "length"
    assert code == -signal.SIGTERM
    said = [line.partition(" INFO ")[2] for line in errors.splitlines()]
    assert said[0] == f"Serving tiny at {served.url}/v1; Ctrl-C ends."
    assert [line[:29] for line in said[1:3]] == ["POST /v1/chat/completions 401", "POST /v1/chat/completions 200"]
    assert said[3] == "Ending: running requests may take 120 more seconds."
    assert said[4].startswith("POST /v1/completions 200 in ")
    assert said[5:] == ["Ended."]
