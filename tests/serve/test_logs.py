"""The server's log: a line for each request, for people or as JSON, and nothing in it that is secret."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.serve.command import LOGGERS, configure_logs
from modelscope_polylm.serve.middleware import Access
from tests.http.running import wait_for
from tests.serve.running import ANSWER, CHAT, QUESTION, Running, chat, serving

KEY = "a-very-secret-key"


@pytest.fixture
def logs() -> Iterator[None]:
    """Takes back what a test configures."""
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in LOGGERS]
    yield
    for logger, level in before:
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)


@pytest.fixture(scope="module")
def server(tiny: TextGenerator) -> Iterator[Running]:
    with serving(tiny, Access((KEY,))) as running:
        yield running


def ask(server: Running, capsys: pytest.CaptureFixture[str], lines: int) -> str:
    """A request that is answered, a stream, one that is refused, and one to a strange path; returns what was logged."""
    right = {"Authorization": f"Bearer {KEY}"}
    server.post(CHAT, chat(), headers={**right, "X-Request-Id": "mine-1"})
    server.post(CHAT, chat(stream=True, temperature=0), headers={**right, "X-Request-Id": "mine-2"})
    server.post(CHAT, chat(), headers={"Authorization": "Bearer wrong-secret"})
    server.http.get("/v1/a%0aINFO forged?key=secret-in-the-address", headers=right)
    server.http.get("/health")
    logged = ""

    def is_complete() -> bool:  # a line may come after its answer
        nonlocal logged
        logged += capsys.readouterr().err
        return logged.count("req-") + logged.count("mine-") >= lines

    wait_for(is_complete)
    for secret in (KEY, "wrong-secret", "secret-in-the-address", QUESTION[:20], ANSWER[:10]):
        assert secret not in logged
    return logged


def test_lines_for_people(server: Running, logs: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "text")
    lines = ask(server, capsys, 4).splitlines()
    assert len(lines) == 4
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO "
    answered = r"POST /v1/chat/completions 200 in \d+\.\d{3} s, 25 \+ 8 tokens, the first after \d+\.\d{3} s, "
    for pattern in (
        answered + "mine-1",
        answered + "mine-2",
        r"POST /v1/chat/completions 401 in \d+\.\d{3} s, req-[0-9a-f]{32}",
        r"GET /v1/a%0aINFO%20forged 404 in \d+\.\d{3} s, req-[0-9a-f]{32}",
    ):
        assert sum(re.fullmatch(clock + pattern, line) is not None for line in lines) == 1, (pattern, lines)


def test_json(server: Running, logs: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug", "json")
    lines = [json.loads(line) for line in ask(server, capsys, 5).splitlines()]
    lines = [line for line in lines if "path" in line]
    assert sorted((line["status"], line["path"][:9], line["level"]) for line in lines) == [
        (200, "/health", "debug"),
        (200, "/v1/chat/", "info"),
        (200, "/v1/chat/", "info"),
        (401, "/v1/chat/", "info"),
        (404, "/v1/a%0aI", "info"),
    ]
    first = next(line for line in lines if line["request_id"] == "mine-1")
    assert (first["method"], first["client"]) == ("POST", "127.0.0.1")
    assert (first["prompt_tokens"], first["completion_tokens"]) == (25, 8)
    assert 0 < first["first_token_seconds"] <= first["seconds"] < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])


@pytest.mark.parametrize(("level", "count"), [("debug", 5), ("info", 4), ("warning", 0), ("error", 0)])
def test_levels(server: Running, logs: None, capsys: pytest.CaptureFixture[str], level: str, count: int) -> None:
    configure_logs(level, "text")
    lines = ask(server, capsys, count).splitlines()
    assert len([line for line in lines if "req-" in line or "mine-" in line]) == count


def test_the_name_of_a_request_is_sent_back(server: Running) -> None:
    own = server.http.get("/health", headers={"X-Request-Id": "abc.DEF_1-2"})
    assert own.headers["x-request-id"] == "abc.DEF_1-2"
    for strange in ("a b", "a" * 101, 'x"', ""):
        made = server.http.get("/health", headers={"X-Request-Id": strange}).headers["x-request-id"]
        assert re.fullmatch("req-[0-9a-f]{32}", made)


def test_a_traceback_stays_in_one_line_of_json(logs: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("modelscope_polylm.serve.batch").exception("A batch failed.")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "ValueError: two\nlines" in json.loads(lines[0])["traceback"]
