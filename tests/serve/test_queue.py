"""The queue, places that become free, and the end of a server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from modelscope_polylm.generation.runner import Runner
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.serve import routes
from modelscope_polylm.serve.errors import EndingError
from modelscope_polylm.serve.parsing import RequestReader
from modelscope_polylm.serve.requests import RequestState
from modelscope_polylm.serve.schemas import CompletionRequest
from tests.http.running import wait_for
from tests.serve.running import (
    ANSWER,
    CHAT,
    COMPLETIONS,
    LONG,
    PROMPT,
    Running,
    chat,
    completion,
    error_of,
    serving,
)

NARROW = {"num_beams": 1}
"""Default options for servers with few rows."""


def long(**more: Any) -> dict[str, Any]:
    return {**completion(**LONG), **more}


def send(server: Running, body: dict[str, Any]) -> socket.socket:
    """A request on a connection of its own."""
    data = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = server.connect()
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


class Steps:
    """Counts the engine's steps; while `go_on` is not set, or from `hold_at` on, they wait for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.hold_at, self.go_on = 0, 0, threading.Event()
        self.go_on.set()
        step = Runner.step

        def counted(runner: Runner, active: Any) -> Any:
            self.count += 1
            assert self.count < self.hold_at or self.go_on.wait(60)
            return step(runner, active)

        monkeypatch.setattr(Runner, "step", counted)

    def release(self, count: int) -> None:
        """Let the step that is held go on, and hold again after so many steps."""
        self.hold_at = self.count + count
        self.go_on.set()
        self.go_on.clear()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    counted = Steps(monkeypatch)
    yield counted
    counted.go_on.set()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_killed_client_frees_its_place_within_two_steps(
    tiny: TextGenerator, steps: Steps, stream: bool, beams: int
) -> None:
    with serving(tiny) as server:
        connection = send(server, long(stream=stream, num_beams=beams))
        wait_for(lambda: steps.count >= 3)
        steps.go_on.clear()
        connection.close()
        wait_for(lambda: server.metric("polylm_cancelled_requests_total") == 1)
        assert server.metric("polylm_running_rows") == 0
        taken = steps.count
        steps.go_on.set()
        wait_for(server.is_idle)
        assert steps.count <= taken + 2


def test_the_rows_of_a_killed_client_are_taken_while_others_go_on(tiny: TextGenerator, steps: Steps) -> None:
    with serving(tiny, defaults=NARROW, rows=2) as server, ThreadPoolExecutor(2) as pool:
        connections = [send(server, long(stream=True)) for _ in range(2)]
        wait_for(lambda: server.metric("polylm_running_rows") == 2 and steps.count >= 2)
        steps.go_on.clear()
        waiting = pool.submit(server.post, CHAT, chat(num_beams=1))
        wait_for(lambda: server.metric("polylm_waiting_requests") == 1)
        connections[0].close()
        wait_for(lambda: server.metric("polylm_cancelled_requests_total") == 1)
        steps.go_on.set()
        assert waiting.result().json()["choices"][0]["message"]["content"] == ANSWER
        connections[1].close()
        wait_for(server.is_idle)


def test_clients_that_leave_the_queue(tiny: TextGenerator) -> None:
    with serving(tiny, defaults=NARROW, rows=1) as server:
        running = send(server, long(stream=True))
        wait_for(lambda: server.metric("polylm_running_rows") == 1)
        waiting = [send(server, long(stream=stream)) for stream in (True, False)]
        wait_for(lambda: server.metric("polylm_waiting_requests") == 2)
        for connection in waiting:
            connection.close()
        wait_for(lambda: server.metric("polylm_waiting_requests") == 0)
        running.close()
        wait_for(server.is_idle)


def test_a_full_queue(tiny: TextGenerator) -> None:
    with serving(tiny, defaults=NARROW, rows=1, queue=2) as server:
        connections = [send(server, long(stream=True, seed=index)) for index in range(3)]
        wait_for(lambda: server.metric("polylm_waiting_requests") == 2)
        for stream in (True, False):
            refused = server.post(CHAT, chat(num_beams=1, stream=stream))
            assert refused.status_code == 429
            assert error_of(refused)["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        for connection in connections:
            connection.close()
        wait_for(server.is_idle)
        assert server.post(CHAT, chat(num_beams=1)).status_code == 200


@pytest.mark.parametrize("beams", [1, 3])
def test_a_queued_stream_has_its_headers_at_once_and_comments(
    tiny: TextGenerator, steps: Steps, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    monkeypatch.setattr(routes, "COMMENT_SECONDS", 0.2)
    with serving(tiny, defaults=NARROW, rows=3) as server:
        running = send(server, long(stream=True, num_beams=3))
        wait_for(lambda: steps.count >= 2)
        steps.go_on.clear()
        start = time.monotonic()
        with server.http.stream("POST", CHAT, json=chat(num_beams=beams, stream=True)) as response:
            seconds = time.monotonic() - start
            assert server.metric("polylm_waiting_requests") == 1
            lines = response.iter_lines()
            waited = [next(lines) for _ in range(8)]
            running.close()
            steps.go_on.set()
            text = "".join(lines)
        print(f"the headers of a queued stream came after {seconds:.2f} s")
        assert (response.status_code, response.headers["content-type"][:17]) == (200, "text/event-stream")
        assert seconds < 2
        assert waited.count(": waiting") >= 3
        assert text.endswith("data: [DONE]")


def test_a_queued_stream_that_cannot_run_says_so(tiny: TextGenerator, steps: Steps) -> None:
    with serving(tiny, defaults=NARROW, rows=1) as server:
        running = send(server, long(stream=True))
        wait_for(lambda: steps.count >= 2)
        steps.go_on.clear()
        with server.http.stream("POST", CHAT, json=chat(stream=True)) as response:
            assert response.status_code == 200
            server.end()
            wait_for(lambda: server.native.queue.is_ending)
            steps.go_on.set()
            events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        assert json.loads(events[-1])["error"]["code"] == "shutting_down"
        running.close()


def test_requests_with_other_options_run_together(tiny: TextGenerator) -> None:
    with serving(tiny) as server:
        first = send(server, long(stream=True))
        wait_for(lambda: server.metric("polylm_running_rows") > 0)
        rows = server.metric("polylm_running_rows")
        assert server.post(CHAT, chat()).json()["choices"][0]["message"]["content"] == ANSWER
        assert server.metric("polylm_running_rows") == rows
        first.close()


def test_short_answers_do_not_wait_for_long_ones_of_their_batch(tiny: TextGenerator, steps: Steps) -> None:
    # without their own end token both go on until this full stop, German for seven tokens and Japanese for ten
    options = {"num_beams": 1, "eos_token_id": tiny.snapshot.tokenizer.encode("Italien.")[-1]}
    german, japanese = (completion(prompt=PROMPT.replace("German", name), **options) for name in ("German", "Japanese"))
    steps.hold_at = 1
    steps.go_on.clear()
    with serving(tiny) as server, ThreadPoolExecutor(2) as pool:
        # both arrive while the first step of another one is held, so the same round admits them
        first = send(server, long(num_beams=1))
        wait_for(lambda: steps.count == 1)
        before = server.metric("polylm_prompt_tokens_total")
        tokens = sum(len(tiny.snapshot.tokenizer.encode(body["prompt"])) for body in (japanese, german))
        slow, short = (pool.submit(server.post, COMPLETIONS, body) for body in (japanese, german))
        wait_for(lambda: server.metric("polylm_prompt_tokens_total") == before + tokens)
        steps.release(1 + 8)
        assert short.result(20).json()["choices"][0]["text"] == ANSWER.removesuffix(".")
        assert not slow.done()
        steps.go_on.set()
        assert slow.result().json()["usage"]["completion_tokens"] == 10
        first.close()
        wait_for(server.is_idle)


def test_the_end_finishes_what_runs_and_refuses_what_waits(tiny: TextGenerator) -> None:
    with serving(tiny, defaults=NARROW, rows=1) as server, ThreadPoolExecutor(3) as pool:
        running = pool.submit(server.post, COMPLETIONS, long())
        wait_for(lambda: server.metric("polylm_running_rows") == 1)
        waiting = pool.submit(server.post, COMPLETIONS, long())
        wait_for(lambda: server.metric("polylm_waiting_requests") == 1)
        server.end()
        refused = waiting.result()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "shutting_down")
        assert running.result().json()["usage"]["completion_tokens"] == 400
        wait_for(lambda: not server.server.server_state.tasks)
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_what_the_device_cannot_hold_together_runs_apart(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = Runner.prefill

    def small(runner: Runner, admitted: Any) -> Any:
        if len(admitted) > 1:
            raise torch.OutOfMemoryError("There is room for one row.")
        return prefill(runner, admitted)

    monkeypatch.setattr(Runner, "prefill", small)
    with serving(tiny) as server, ThreadPoolExecutor(4) as pool:
        for response in pool.map(lambda _: server.post(CHAT, chat(num_beams=1, n=2, temperature=0)), range(4)):
            assert [choice["message"]["content"] for choice in response.json()["choices"]] == [ANSWER] * 2


def test_an_error_of_the_engine_is_told(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(runner: Runner, admitted: Any) -> Any:
        raise torch.OutOfMemoryError("There is no room.")

    with serving(tiny) as server:
        with monkeypatch.context() as patched:
            patched.setattr(Runner, "prefill", fail)
            refused = server.post(CHAT, chat(num_beams=1))
        assert refused.status_code == 503 and "ran out of memory" in error_of(refused)["message"]
        assert server.post(CHAT, chat(num_beams=1)).status_code == 200


def test_defaults_of_the_server(tiny: TextGenerator) -> None:
    with serving(tiny, defaults={"num_beams": 1, "max_new_tokens": 2}) as server:
        assert server.post(CHAT, chat()).json()["usage"]["completion_tokens"] == 2
        assert server.post(CHAT, chat(max_tokens=3, num_beams=2)).json()["usage"]["completion_tokens"] == 3


def test_metrics(tiny: TextGenerator) -> None:
    with serving(tiny) as server:
        tokens = server.post(CHAT, chat()).json()["usage"]
        server.post(CHAT, {})
        assert server.metric("polylm_prompt_tokens_total") == tokens["prompt_tokens"]
        assert server.metric("polylm_generated_tokens_total") == tokens["completion_tokens"]
        assert server.metric('polylm_requests_total{path="/v1/chat/completions",status="200"}') == 1
        assert server.metric('polylm_requests_total{path="/v1/chat/completions",status="400"}') == 1
        assert server.metric("polylm_first_text_seconds_count") == 1
        assert 0 < server.metric("polylm_first_text_seconds_sum") < 60
        assert server.metric("polylm_queue_seconds_count") == 1


def test_a_request_that_failed_before_anybody_waits_for_it(tiny: TextGenerator) -> None:
    request = RequestReader(tiny, {}, 32).read_completion(CompletionRequest(**completion()))

    async def wait(name: str) -> None:
        state = RequestState(request)
        state.error, state.is_open = EndingError("It is over."), False
        await getattr(state, name)()

    for name in ("until_started", "until_complete"):
        with pytest.raises(EndingError):
            asyncio.run(wait(name))
