"""Clients that are slow, silent or gone do not keep the server from serving others."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.http import connections, middleware
from modelscope_polylm.serve import routes
from tests.serve.running import ANSWER, CHAT, COMPLETIONS, LONG, Running, chat, completion, serving, wait_for

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def received(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", HEAD.encode()], ids=["nothing", "line", "head"])
def test_slow_heads(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with serving(tiny) as server:
        slow = server.connect()
        slow.sendall(sent)
        assert server.post(CHAT, chat()).json()["choices"][0]["message"]["content"] == ANSWER
        assert received(slow) == b""
        time.sleep(0.6)
        assert server.post(CHAT, chat()).status_code == 200  # on a connection that has been used before


def test_a_head_byte_by_byte(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with serving(tiny) as server:
        slow, start = server.connect(), time.monotonic()
        with pytest.raises(OSError):
            for _ in range(200):
                slow.sendall(b"X")
                time.sleep(0.05)
        assert time.monotonic() - start < 5


def test_a_second_head_byte_by_byte(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with serving(tiny) as server:
        slow = server.connect()
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while b"ok" not in answer:  # head and body may come one by one
            answer += slow.recv(65536)
        slow.sendall(b"GET /hea")
        assert received(slow) == b""


def test_a_slow_body(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.5)
    with serving(tiny) as server:
        slow = server.connect()
        slow.sendall(f"{HEAD}Connection: close\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = received(slow)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"error"' in answer


def test_half_closed_connections(tiny: TextGenerator) -> None:
    with serving(tiny) as server:
        body = json.dumps(completion(**LONG)).encode()
        for sent in (b"", HEAD.encode(), f"{HEAD}Content-Length: 100\r\n\r\n{{".encode()):
            with server.connect() as half:
                half.sendall(sent)
                half.shutdown(socket.SHUT_WR)
                received(half)
        with server.connect() as half:
            head = HEAD.replace(CHAT, COMPLETIONS)
            half.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            half.shutdown(socket.SHUT_WR)
            received(half)
        wait_for(server.is_idle)
        assert server.post(CHAT, chat()).status_code == 200


def test_a_client_that_does_not_read(tiny: TextGenerator) -> None:
    with serving(tiny, defaults={"num_beams": 1}) as server:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", server.port))
        body = json.dumps(completion(**LONG, stream=True, n=8)).encode()
        deaf.sendall(f"{HEAD.replace(CHAT, COMPLETIONS)}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: server.metric("polylm_running_rows") > 0)
        wait_for(server.is_idle)
        assert server.post(CHAT, chat()).status_code == 200
        deaf.close()


def test_sending_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "SEND_SECONDS", 0.05)
    messages = [{"type": "http.response.start", "status": 200, "headers": []}]

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def full_buffer(message: Any) -> None:
        await asyncio.sleep(60)

    async def nothing() -> Any:
        raise AssertionError

    scope = {"type": "http", "path": "/health", "headers": []}
    metrics = Metrics()
    with pytest.raises(TimeoutError):
        asyncio.run(gate.Gate(application, metrics, None, 1000)(scope, nothing, full_buffer))
    assert b'polylm_requests_total{path="/health",status="200"} 1.0' in metrics.text()


def test_too_many_connections(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tiny) as server:
        assert server.post(CHAT, chat()).status_code == 200
        monkeypatch.setattr(connections, "MAX_CONNECTIONS", 1)
        with pytest.raises(OSError), server.connect() as further:
            further.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if not received(further):
                raise ConnectionResetError
        assert server.post(CHAT, chat()).status_code == 200


def test_no_http(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    with server.connect() as connection:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")


def test_a_stream_without_news_is_kept_alive(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "COMMENT_SECONDS", 0.01)
    body = chat(num_beams=8, min_new_tokens=60, max_tokens=60, stream=True)
    with serving(tiny) as server, server.http.stream("POST", CHAT, json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert ": waiting" in lines
    assert lines[-1] == "data: [DONE]"
