"""Bodies within bounds, and pages of other hosts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from modelscope_polylm.http import middleware
from modelscope_polylm.http.middleware import BodyMiddleware, HostMiddleware
from modelscope_polylm.http.server import Server
from tests.http.running import listening, received, status_of


async def length(request: Request) -> JSONResponse:
    return JSONResponse({"length": len(await request.body())})


def application(origins: Sequence[str] = ()) -> Any:
    routes = Starlette(routes=[Route("/", length, methods=["GET", "POST"])])
    return HostMiddleware(BodyMiddleware(routes, 1000), origins, "Do something else.")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    server = Server(application(), "127.0.0.1", 0, 5)
    with listening(server) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("APPLICATION/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        (None, 415),
        ("", 415),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=json", 415),
    ],
)
def test_what_a_page_can_send_without_being_asked_is_refused(
    client: httpx.Client, kind: str | None, status: int
) -> None:
    answer = client.post("/", content=b"{}", headers={} if kind is None else {"Content-Type": kind})
    assert answer.status_code == status
    if status == 415:
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("size", [0, 1000, 1001, 5_000_000])
def test_sizes_told_and_untold(client: httpx.Client, size: int) -> None:
    pieces = iter([b" " * 500] * (size // 500) + [b" " * (size % 500)])
    for content in (b" " * size, pieces):
        answer = client.post("/", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == (200 if size <= 1000 else 413)
        if size > 1000:
            assert "1,000 bytes" in answer.text


def test_a_refusal_reaches_a_client_that_still_sends(client: httpx.Client) -> None:
    for number in range(20):
        body = b"x" * 2_000_000
        kind = b"application/json" if number % 2 else b"text/plain"
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + kind + b"\r\n"
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = connection.recv(65536)
            assert status_of(answer) == (413 if number % 2 else 415)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"HTTP/1.1 200" in received(connection)


def test_a_slow_body(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.3)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as slow:
        slow.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert status_of(received(slow)) == 408


HOSTS = {
    "localhost": True,
    "LOCALHOST:1": True,
    "127.0.0.1": True,
    "[::1]:8000": True,
    "[::1]": True,
    "evil.example": False,
    "evil.example:8000": False,
    "127.0.0.1.evil.example": False,
    "localhost.evil:1": False,
    "evil.example#localhost": False,
    "localhost@evil.example": False,
    "": False,
}


@pytest.mark.parametrize("host", HOSTS)
def test_names_of_this_machine(client: httpx.Client, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == (200 if HOSTS[host] else 403)
    if not HOSTS[host]:
        assert answer.json()["error"]["code"] == "foreign_host"
        assert answer.json()["error"]["message"].endswith("Do something else.")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("https://localhost", True),
        ("http://localhost:3000", False),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
        ("http://localhost:80@evil.example", False),
    ],
)
def test_pages_of_other_origins(client: httpx.Client, origin: str, allowed: bool) -> None:
    headers = {"Origin": origin, "Host": "localhost", "Content-Type": "application/json"}
    for answer in (client.get("/", headers=headers), client.post("/", content=b"{}", headers=headers)):
        assert answer.status_code == (200 if allowed else 403)
        assert allowed or answer.json()["error"]["code"] == "foreign_origin"


def test_origins_that_are_let_in() -> None:
    with listening(Server(application(["https://page.example:444"]), "127.0.0.1", 0, 5)) as port:
        url = f"http://127.0.0.1:{port}/"
        for origin, host, status in (
            ("https://page.example:444", "localhost", 200),
            ("https://page.example:444", "page.example:444", 200),
            ("https://page.example", "localhost", 403),
            ("https://other.example", "other.example", 403),
        ):
            assert httpx.get(url, headers={"Origin": origin, "Host": host}).status_code == status
    with listening(Server(application(["*"]), "127.0.0.1", 0, 5)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/", headers={"Origin": "https://any.example"}).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/", headers={"Host": "any.example"}).status_code == 403
        assert json.loads(httpx.get(f"http://127.0.0.1:{port}/").text) == {"length": 0}
