"""Clients that are slow, silent or gone do not keep the server from serving others."""

from __future__ import annotations

import json
import socket

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.serve import routes
from tests.http.running import received, status_of, wait_for
from tests.serve.running import ANSWER, CHAT, COMPLETIONS, LONG, Running, chat, completion, serving

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_half_closed_connections(tiny: TextGenerator) -> None:
    with serving(tiny) as server:
        for sent in (b"", HEAD.encode(), f"{HEAD}Content-Length: 100\r\n\r\n{{".encode()):
            with server.connect() as half:
                half.sendall(sent)
                half.shutdown(socket.SHUT_WR)
                assert received(half) == b""
        for stream in (False, True):
            body = json.dumps(chat(stream=stream)).encode()
            with server.connect() as half:
                half.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                half.shutdown(socket.SHUT_WR)
                answer = received(half)
            assert status_of(answer) == 200
            assert ANSWER.encode() in answer
        wait_for(server.is_idle)


def test_a_client_that_does_not_read(tiny: TextGenerator) -> None:
    with serving(tiny, defaults={"num_beams": 1}) as server:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", server.port))
        body = json.dumps(completion(**{**LONG, "min_new_tokens": 150, "max_tokens": 150}, stream=True, n=8)).encode()
        deaf.sendall(f"{HEAD.replace(CHAT, COMPLETIONS)}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: server.metric("polylm_running_rows") > 0)
        wait_for(server.is_idle)
        assert server.post(CHAT, chat()).status_code == 200
        deaf.close()


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
