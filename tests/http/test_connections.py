"""Raw sockets against the connections: heads without end, contradictions, upgrades, silent and deaf clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from modelscope_polylm.http import server as http_server
from modelscope_polylm.http.server import MAX_HEAD_BYTES, MAX_HEADERS, Server
from tests.http.running import exchange, json_of, listening, received, status_of, wait_for

CLOSE = b"Connection: close\r\n"
HOST = b"Host: localhost\r\n"
BODY = b'{"a": "b"}'


class Application:
    """Tells what it was asked; /slow waits, /events and /flood never end."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked = self.running = self.gone = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.asked += 1
        self.running += 1
        try:
            await getattr(self, f"_{scope['path'].strip('/')}", self._echo)(scope, receive, send)
        finally:
            self.running -= 1

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            body, more = body + message["body"], message["more_body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        shown = json.dumps({"path": scope["path"], "headers": headers, "body": body.decode()}).encode()
        length = (b"content-length", str(len(shown)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": shown})

    async def _slow(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        gone = asyncio.ensure_future(receive())
        while not self.go_on.is_set() and not gone.done():
            await asyncio.sleep(0.01)
        self.gone += gone.done()
        gone.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    async def _events(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
        await receive()
        while not self.go_on.is_set() and (await _soon(receive())) is None:
            pass
        self.gone += not self.go_on.is_set()
        await send({"type": "http.response.body", "body": b"data: last\n\n"})

    async def _flood(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _large(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 20_000_000})


async def _soon(message: Any) -> Any:
    try:
        return await asyncio.wait_for(message, 0.02)
    except (TimeoutError, asyncio.TimeoutError):
        return None


@pytest.fixture
def application() -> Iterator[Application]:
    running = Application()
    yield running
    running.go_on.set()


@pytest.fixture
def server(application: Application) -> Server:
    return Server(application, "127.0.0.1", 0, end_seconds=30)


@pytest.fixture
def port(server: Server) -> Iterator[int]:
    with listening(server) as port:
        yield port


def request(path: bytes = b"/", *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """A request that asks for the connection to be closed after it."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    lines = b"".join(header + b"\r\n" for header in headers)
    return method + b" " + path + b" HTTP/1.1\r\n" + HOST + CLOSE + length + lines + b"\r\n" + body


def test_a_request(port: int) -> None:
    seen = json_of(exchange(port, request(b"/a", b"X-A: 1", method=b"POST", body=BODY)))
    assert (seen["path"], seen["headers"]["x-a"], seen["body"]) == ("/a", "1", BODY.decode())


@pytest.mark.parametrize("count", [MAX_HEADERS - 2, MAX_HEADERS - 1, 5000])
def test_the_number_of_headers(port: int, count: int) -> None:
    answer = exchange(port, request(b"/", *[b"X-%d: 1" % number for number in range(count)]))
    assert status_of(answer) == (200 if count == MAX_HEADERS - 2 else 431)


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES - 200, MAX_HEAD_BYTES + 200, 3 * MAX_HEAD_BYTES])
@pytest.mark.parametrize("where", ["line", "header"])
def test_the_size_of_a_head(port: int, size: int, where: str) -> None:
    filler = b"x" * size
    sent = request(b"/" + filler) if where == "line" else request(b"/", b"X-A: " + filler)
    for packets in ((sent,), (sent[:1000], sent[1000:])):
        answer = exchange(port, *packets)
        assert status_of(answer) == (200 if size < MAX_HEAD_BYTES else 431)
    if size > MAX_HEAD_BYTES:
        assert "65,536 bytes" in json_of(answer)["error"]["message"]


def test_a_second_head_in_the_same_packet_is_bounded_as_well(port: int) -> None:
    first = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = exchange(port, first + request(b"/", *[b"X-%d: 1" % number for number in range(5000)]))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 431" in answer


def flood(port: int, piece: bytes, seconds: float = 20) -> int:
    """Send a head without end; returns how many bytes went out before the server closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + HOST)
        sent, end = 0, time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                sent += connection.send(piece)
    return sent


@pytest.mark.parametrize("piece", [b"a: b\r\n" * 10_000, b"x" * 60_000, b"a: " + b"b" * 60_000 + b"\r\n"])
def test_heads_without_end_take_no_memory(port: int, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LINGER_SECONDS", 0.2)
    process, start = psutil.Process(), time.monotonic()
    before = process.memory_info().rss
    senders = [threading.Thread(target=flood, args=(port, piece)) for _ in range(4)]
    for sender in senders:
        sender.start()
    most = before
    while any(sender.is_alive() for sender in senders):
        most = max(most, process.memory_info().rss)
        time.sleep(0.01)
    seconds, grown = time.monotonic() - start, (most - before) / 1e6
    print(f"4 floods of {piece[:4]!r}: closed after {seconds:.2f} s, {grown:.1f} MB more")
    assert seconds < 5
    assert grown < 40
    assert status_of(exchange(port, request())) == 200


CONTRADICTIONS = {
    "two hosts": HOST + b"Host: evil.example\r\n\r\n",
    "two keys": HOST + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    "two types": HOST + b"Content-Type: application/json\r\nContent-Type: text/plain\r\n\r\n",
    "no host": b"\r\n",
    "two lengths": HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "length and chunks": HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two encodings": HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown encoding": HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "encodings in a list": HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a tab in the encoding": HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HOST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a space before the name": HOST + b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": HOST + b"X-A: a\r\n Transfer-Encoding: chunked\r\n\r\n",
    "a line feed alone": HOST + b"X-A: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "line feeds alone": b"Host: localhost\n\n",
    "a carriage return alone": HOST + b"X-A: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a zero byte": HOST + b"X-A: a\x00b\r\n\r\n",
    "a negative length": HOST + b"Content-Length: -5\r\n\r\nabcde",
    "a signed length": HOST + b"Content-Length: +5\r\n\r\nabcde",
    "a hexadecimal length": HOST + b"Content-Length: 0x5\r\n\r\nabcde",
    "a length with a line": HOST + b"Content-Length: 1_0\r\n\r\nabcde",
    "a huge length": HOST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
    "a line without a colon": HOST + b"abc\r\n\r\n",
    "a name with a space": HOST + b"a b: c\r\n\r\n",
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_two_readers_would_read_in_two_ways_is_refused(port: int, name: str) -> None:
    answer = exchange(port, b"POST / HTTP/1.1\r\n" + CLOSE + CONTRADICTIONS[name])
    assert status_of(answer) in (400, 501), answer
    assert json_of(answer)["error"]["message"].endswith(".")


@pytest.mark.parametrize(
    "chunk", [b"zz\r\nabc\r\n", b"-1\r\na\r\n", b"0x3\r\nabc\r\n", b"3\nabc\r\n", b"3\r\nabcX\r\n"]
)
def test_chunks_that_are_none_are_refused(port: int, chunk: bytes) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert status_of(exchange(port, head + chunk + b"0\r\n\r\n")) == 400


def test_a_body_in_small_chunks(port: int) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"
    start = time.monotonic()
    answer = exchange(port, head + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n")
    seconds = time.monotonic() - start
    print(f"200,000 chunks of one byte: refused after {seconds:.2f} s")
    assert (status_of(answer), seconds < 3) == (413, True)
    assert json_of(exchange(port, head + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n"))["body"] == "x" * 1000
    large = b"100\r\n" + b"y" * 256 + b"\r\n"
    assert json_of(exchange(port, head + large * 12_000 + b"0\r\n\r\n"))["body"] == "y" * 256 * 12_000


def test_trailers_override_nothing(port: int) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + CLOSE + b"Authorization: none\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"3\r\nabc\r\n0\r\nHost: evil.example\r\nAuthorization: Bearer key\r\n\r\n"
    seen = json_of(exchange(port, head + trailers))
    assert (seen["headers"]["host"], seen["headers"]["authorization"]) == ("localhost", "none")
    assert seen["body"] == "abc"


@pytest.mark.parametrize(
    "upgrade",
    [
        [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk"],
        [b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: YQ=="],
        [b"Connection: Upgrade", b"Upgrade: TLS/1.2, HTTP/2.0"],
    ],
    ids=["h2c", "websocket", "TLS"],
)
@pytest.mark.parametrize("packets", [1, 2, 3])
def test_upgrades_that_nobody_offers_are_ignored(port: int, upgrade: list[bytes], packets: int) -> None:
    head = b"\r\n".join([b"POST /v1 HTTP/1.1", b"Host: localhost", *upgrade, b"Content-Length: %d" % len(BODY)])
    sent = head + b"\r\n\r\n" + BODY
    cuts = {1: [], 2: [len(sent) - len(BODY)], 3: [20, len(sent) - 3]}[packets]
    parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    # the next request on the same connection is read as well
    answer = exchange(port, *parts, request(b"/next"))
    assert answer.count(b"HTTP/1.1 200") == 2
    assert json.dumps(BODY.decode()).encode() in answer
    assert b'"path": "/next"' in answer


def test_http_2_without_asking_is_refused(port: int) -> None:
    assert status_of(exchange(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) == 505


@pytest.mark.parametrize("sent", [b"", b"POST /v1", b"POST / HTTP/1.1\r\n" + HOST], ids=["nothing", "line", "head"])
def test_slow_heads_are_not_waited_for(port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(sent)
        assert status_of(exchange(port, request())) == 200  # others do not wait
        assert received(slow) == b""
    assert time.monotonic() - start < 5


def test_a_head_byte_by_byte(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow, pytest.raises(OSError):
        for _ in range(200):
            slow.sendall(b"X")
            time.sleep(0.05)
    assert time.monotonic() - start < 5


def test_a_second_head_byte_by_byte(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = b""
        while b"/echo" not in answer:
            answer += slow.recv(65536)
        slow.sendall(b"GET /ec")
        assert received(slow) == b""


def test_a_connection_may_rest_between_two_requests(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    answer = exchange(port, b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n", request(b"/b"), pause=0.6)
    assert answer.count(b"HTTP/1.1 200") == 2


def test_half_closed_clients_are_answered(port: int, application: Application) -> None:
    answers: list[bytes] = []

    def ask(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            path = b"/slow" if number % 2 else b"/echo"
            connection.sendall(request(path, method=b"POST", body=BODY))
            connection.shutdown(socket.SHUT_WR)
            answers.append(received(connection))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    wait_for(lambda: application.running == 25 and len(answers) == 25)
    application.go_on.set()
    for thread in threads:
        thread.join(30)
    assert [status_of(answer) for answer in answers] == [200] * 50
    assert sum(answer.endswith(b"late") or b"late" in answer for answer in answers) == 25


def test_a_half_closed_client_gets_its_stream(port: int, application: Application) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request(b"/events"))
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        application.go_on.set()
        answer = received(connection)
    assert answer.index(b"data: first") < answer.index(b"\n:\n\n") < answer.index(b"data: last")


@pytest.mark.parametrize("path", [b"/slow", b"/events"])
def test_a_client_that_is_gone_is_noticed_at_once(port: int, application: Application, path: bytes) -> None:
    clients = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(20)]
    for client in clients:
        client.sendall(request(path, method=b"POST", body=BODY))
    wait_for(lambda: application.running == 20)
    time.sleep(0.2)
    start = time.monotonic()
    for client in clients:
        client.close()
    wait_for(lambda: application.gone == 20)
    seconds = time.monotonic() - start
    print(f"20 clients of {path.decode()} were gone: noticed after {seconds:.2f} s")
    assert seconds < 2


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\n" + HOST, request(method=b"POST", body=BODY)[:-3]])
def test_half_a_request_of_a_half_closed_client_is_dropped(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert received(connection) == b""


def deaf(port: int, path: bytes) -> socket.socket:
    """A client that asks and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", port))
    client.sendall(request(path))
    return client


@pytest.mark.parametrize("path", [b"/flood", b"/large"])
def test_clients_that_never_read_are_cut_off(
    port: int, server: Server, application: Application, monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setattr(http_server, "SEND_SECONDS", 0.5)
    start = time.monotonic()
    clients = [deaf(port, path) for _ in range(20)]
    wait_for(lambda: application.asked == 20)
    wait_for(lambda: not server.server_state.connections)
    seconds = time.monotonic() - start
    print(f"20 deaf clients of {path.decode()}: closed after {seconds:.2f} s")
    assert seconds < 8
    assert status_of(exchange(port, request())) == 200
    for client in clients:
        client.close()


def test_the_end_does_not_wait_for_clients_that_never_read(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "END_SEND_SECONDS", 0.5)
    server = Server(application, "127.0.0.1", 0, end_seconds=30)
    with listening(server) as port:
        clients = [deaf(port, path) for path in (b"/flood", b"/large") for _ in range(5)]
        wait_for(lambda: application.asked == 10)
        time.sleep(0.3)
        start = time.monotonic()
    seconds = time.monotonic() - start
    print(f"ended {seconds:.2f} s after it was asked, with 10 deaf clients")
    assert seconds < 5
    for client in clients:
        client.close()


def test_too_many_connections(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)
    kept = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3)]
    time.sleep(0.1)
    with pytest.raises(OSError):
        if not exchange(port, request()):
            raise ConnectionResetError
    for connection in kept:
        connection.close()
    wait_for(lambda: status_of(exchange(port, request())) == 200)
