"""What the web app serves and refuses, the headers that it adds, and calls without end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from modelscope_polylm.generator import GenerationResult, TextDelta, TextGenerator
from modelscope_polylm.http.server import Server
from modelscope_polylm.web import answers, middleware
from modelscope_polylm.web.middleware import JOIN, PREDICT, SECURITY_HEADERS, PageMiddleware, is_allowed
from modelscope_polylm.web.page import MAX_SESSIONS, application, build_pages
from tests.http.running import listening, wait_for


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/en/", True),
        ("HEAD", "/zh/", True),
        ("GET", "/vi/assets/index-1.js", True),
        ("GET", "/en/gradio_api/queue/data", True),
        ("POST", "/zh/gradio_api/queue/join", True),
        ("GET", "/", False),
        ("GET", "/en", False),
        ("GET", "/de/", False),
        ("POST", "/gradio_api/queue/join", False),
        ("GET", "/en/en/", False),
        ("POST", "/en/gradio_api/upload", False),
        ("GET", "/en/gradio_api/upload", False),
        ("GET", "/en/gradio_api/file=/etc/passwd", False),
        ("GET", "/en/gradio_api/file/etc/passwd", False),
        ("GET", "/en/gradio_api/proxy=https://example.com", False),
        ("GET", "/en/gradio_api/deep_link", False),
        ("GET", "/en/monitoring/summary", False),
        ("POST", "/en/", False),
        ("PUT", "/en/gradio_api/queue/join", False),
        ("", "/en/gradio_api/queue/join", False),
        ("GET", "/en/config\n", False),
    ],
)
def test_only_the_page_is_served(method: str, path: str, allowed: bool) -> None:
    assert is_allowed(method, path) is allowed


def exchange(scope: dict[str, Any], more_headers: Sequence[tuple[bytes, bytes]] = ()) -> list[dict[str, Any]]:
    """What PageMiddleware sends for a request, around an application that answers everything with 200."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b"), *more_headers]})

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    asyncio.run(PageMiddleware(application)(scope, receive, send))
    return sent


def test_headers_keep_the_browser_at_home() -> None:
    start = exchange({"type": "http", "method": "GET", "path": "/en/"})[0]
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"a"] == b"b"
    assert headers[b"content-security-policy"].decode() == SECURITY_HEADERS["content-security-policy"]
    assert "http" not in SECURITY_HEADERS["content-security-policy"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_other_requests_do_not_reach_gradio(kind: str) -> None:
    sent = exchange({"type": kind, "method": "POST", "path": "/en/gradio_api/upload"})
    assert [message.get("status") for message in sent] == ([404, None] if kind == "http" else [])


def test_pages_of_other_origins_get_no_permission() -> None:
    permission = [(b"access-control-allow-origin", b"*"), (b"access-control-allow-credentials", b"true")]
    names = [name for name, _ in exchange({"type": "http", "method": "GET", "path": "/en/"}, permission)[0]["headers"]]
    assert not any(name.startswith(b"access-control") for name in names)


class Slow:
    """A generator that answers letter by letter until it is stopped, and counts what it works on."""

    def __init__(self, tiny: TextGenerator) -> None:
        self.snapshot, self.options, self.reader, self.backend = tiny.snapshot, tiny.options, tiny.reader, tiny.backend
        self.running = self.asked = 0

    def stream(self, prompts: Any, options: Any) -> Any:
        self.running += 1
        self.asked += 1
        try:
            while "slowly" in prompts[0].text:
                time.sleep(0.05)
                yield TextDelta(0, "x")
            completion: Any = SimpleNamespace(ids=[1], score=None, finish_reason="eos")
            yield TextDelta(0, "done", GenerationResult("", ["done"], [completion]))
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def slow(tiny: TextGenerator) -> Slow:
    return Slow(tiny)


@pytest.fixture(scope="module")
def pages(slow: Slow) -> Any:
    pytest.importorskip("gradio", minversion="6.31", reason="the extra `web` is not installed")
    return build_pages(slow, at_once=2, waiting=8)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(pages: Any) -> Any:
    return pages["en"]


@pytest.fixture(scope="module")
def client(pages: Any) -> Iterator[httpx.Client]:
    """The English page on its real server."""
    server = Server(application(pages), "127.0.0.1", 0, 1)
    with listening(server) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}/en", timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer waits only shortly for a page that has gone."""
    monkeypatch.setattr(answers, "KEPT_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("path", "accepted", "language"),
    [
        ("/", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("/", "vi-VN", "vi"),
        ("/", "de-DE,de;q=0.9,vi;q=0.3,en;q=0.2", "vi"),
        ("/", "en;q=0.1,ZH-tw;q=0.2", "zh"),
        ("/", "zh;q=0,en;q=0.1", "en"),
        ("/", "de", "en"),
        ("/", "", "en"),
        ("/", "zh;q=high, vi", "vi"),
        ("/", "\xff,;;q=,=", "en"),
        ("/vi", "zh", "vi"),
    ],
)
def test_the_browser_chooses_the_language(client: httpx.Client, path: str, accepted: str, language: str) -> None:
    url = f"http://127.0.0.1:{client.base_url.port}{path}"
    answer = httpx.get(url, headers=[("Accept-Language", accepted.encode("latin-1"))])
    assert (answer.status_code, answer.headers["location"]) == (307, f"{language}/")
    assert answer.headers["vary"] == "accept-language"


def call(page: Any, text: str, session: str = "one") -> dict[str, Any]:
    """What the page sends when a message is written."""
    number = next(number for number, function in page.fns.items() if function.name == "on_send")
    inputs = page.fns[number].inputs
    values = [None if block.stateful else getattr(block, "value", None) for block in inputs]
    return {"fn_index": number, "data": [text, *values[1:]], "session_hash": session}


def answered(client: httpx.Client, session: str) -> str:
    """What a listening page hears, to its end."""
    return client.get("/gradio_api/queue/data", params={"session_hash": session}).text


def test_a_call_of_the_page_is_answered(client: httpx.Client, page: Any) -> None:
    assert client.post(JOIN, json=call(page, "Hello")).status_code == 200
    assert "done" in answered(client, "one")


WRONG_CALLS: dict[str, Any] = {
    "no object": [1],
    "no data": {"fn_index": 0, "session_hash": "a"},
    "unknown function": {"fn_index": 999, "data": [], "session_hash": "a"},
    "function by name": {"fn_index": "on_send", "data": [], "session_hash": "a"},
    "a list as function": {"fn_index": [], "data": [], "session_hash": "a"},
    "too few values": {"data": ["secret" * 1000]},
    "too many values": {"data": ["secret"] * 200},
    "a list as value": {"data": [["secret"]]},
    "an object as value": {"data": [{"path": "/etc/passwd"}]},
    "no session": {"session_hash": None},
    "a long session": {"session_hash": "a" * 101},
    "a strange session": {"session_hash": "a\nb"},
    "a number as session": {"session_hash": 5},
}


@pytest.mark.parametrize("name", WRONG_CALLS)
@pytest.mark.parametrize("path", [JOIN, PREDICT])
def test_calls_that_the_page_would_not_make(
    client: httpx.Client, page: Any, capfd: pytest.CaptureFixture[str], name: str, path: str
) -> None:
    wrong = WRONG_CALLS[name]
    proper = call(page, "Hello")
    if name in ("a list as value", "an object as value"):
        wrong = {"data": [*wrong["data"], *proper["data"][1:]]}
    body = {**proper, **wrong} if isinstance(wrong, dict) else wrong
    if name == "no data":
        del body["data"]
    assert client.post(path, json=body).status_code == 400
    assert "secret" not in "".join(capfd.readouterr())


def test_values_of_choices_are_short(client: httpx.Client, page: Any) -> None:
    body = call(page, "Hello")
    number = next(
        n for n, block in enumerate(page.fns[body["fn_index"]].inputs) if block.get_block_name() == "dropdown"
    )
    body["data"][number] = "x" * 2000
    assert client.post(JOIN, json=body).status_code == 400
    body = call(page, "x" * 20_000)
    assert client.post(JOIN, json=body).status_code == 200
    assert "shorten" in answered(client, "one") or "done" in answered(client, "one")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b'"a"'])
def test_bodies_that_are_none(client: httpx.Client, content: bytes) -> None:
    answer = client.post(JOIN, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_large_bodies_are_not_taken(client: httpx.Client, page: Any) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    for content in (json.dumps(call(page, "x" * 1_200_000)).encode(), iter([b"[" + b"1," * 40_000] * 200)):
        assert client.post(JOIN, content=content, headers={"Content-Type": "application/json"}).status_code == 413
    grown = (process.memory_info().rss - before) / 1e6
    print(f"16 MB of one body: {grown:.1f} MB more")
    assert grown < 20


def test_hosts_and_origins(client: httpx.Client, page: Any) -> None:
    body = json.dumps(call(page, "Hello"))
    kind = {"Content-Type": "application/json"}
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/config", headers={"Origin": "http://localhost:3000"}).status_code == 403
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example:7860"}):
        assert client.post(JOIN, content=body, headers={**kind, **headers}).status_code == 403
    assert client.post(JOIN, content=body).status_code == 415
    own = {"Origin": f"http://127.0.0.1:{client.base_url.port}"}
    answer = client.get("/config", headers=own)
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("origins", [(), ("https://page.example",)])
def test_a_page_under_another_name(slow: Slow, origins: tuple[str, ...]) -> None:
    pages = build_pages(slow)  # type: ignore[arg-type]
    with listening(Server(application(pages, local=True, origins=origins), "127.0.0.1", 0, 1)) as port:
        headers = {"Host": "page.example", "Origin": "https://page.example"}
        assert httpx.get(f"http://127.0.0.1:{port}/en/config", headers=headers).status_code == (200 if origins else 403)
    pages = build_pages(slow)  # type: ignore[arg-type]
    with listening(Server(application(pages, local=False), "127.0.0.1", 0, 1)) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/en/config", headers={"Host": "any", "Origin": "https://any"})
        assert answer.status_code == 200
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_calls_that_nobody_listens_for_are_dropped(
    client: httpx.Client, page: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LISTEN_SECONDS", 1.0)
    process, start = psutil.Process(), time.monotonic()
    before = process.memory_info().rss
    bodies = [call(page, "Tell me slowly", f"flood-{number}") for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda body: client.post(JOIN, json=body).status_code, bodies))
    assert set(statuses) <= {200, 503}
    wait_for(lambda: slow.running == 0)
    wait_for(lambda: not any(name.startswith("flood-") for name in page._queue.pending_messages_per_session))
    seconds, grown = time.monotonic() - start, (process.memory_info().rss - before) / 1e6
    print(f"100 joins without a listener: {statuses.count(200)} taken, {grown:.0f} MB more, gone after {seconds:.1f} s")
    assert seconds < 25
    assert grown < 100
    assert client.post(JOIN, json=call(page, "Hello", "real")).status_code == 200
    assert "done" in answered(client, "real")
    assert len(page.state_holder.session_data) <= MAX_SESSIONS


def test_a_call_that_somebody_listens_for_goes_on(
    client: httpx.Client, page: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LISTEN_SECONDS", 0.2)
    assert client.post(JOIN, json=call(page, "Tell me slowly", "heard")).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "heard"}) as stream:
        lines = stream.iter_lines()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert next(lines) is not None
        assert slow.running == 1
    wait_for(lambda: slow.running == 0)  # the page was closed


def test_a_later_call_has_its_own_time_for_a_listener(
    client: httpx.Client, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LISTEN_SECONDS", 1.0)
    assert client.post(JOIN, json=call(page, "Hello", "again")).status_code == 200
    assert "done" in answered(client, "again")
    time.sleep(0.8)
    assert client.post(JOIN, json=call(page, "Hello", "again")).status_code == 200
    time.sleep(0.5)
    assert "done" in answered(client, "again")
