"""What the web app serves and refuses, and the headers that it adds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelscope_polylm.web.page import SECURITY_HEADERS, PageOnly, is_allowed


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/", True),
        ("HEAD", "/", True),
        ("GET", "/assets/index-1.js", True),
        ("GET", "/gradio_api/queue/data", True),
        ("POST", "/gradio_api/queue/join", True),
        ("POST", "/gradio_api/upload", False),
        ("GET", "/gradio_api/upload", False),
        ("GET", "/gradio_api/file=/etc/passwd", False),
        ("GET", "/gradio_api/file/etc/passwd", False),
        ("GET", "/gradio_api/proxy=https://example.com", False),
        ("GET", "/gradio_api/deep_link", False),
        ("GET", "/monitoring/summary", False),
        ("POST", "/", False),
        ("PUT", "/gradio_api/queue/join", False),
        ("", "/gradio_api/queue/join", False),
        ("GET", "/config\n", False),
    ],
)
def test_only_the_page_is_served(method: str, path: str, allowed: bool) -> None:
    assert is_allowed(method, path) is allowed


def exchange(scope: dict[str, Any]) -> list[dict[str, Any]]:
    """What PageOnly sends for a request, around an application that answers everything with 200."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    asyncio.run(PageOnly(application)(scope, receive, send))
    return sent


def test_headers_keep_the_browser_at_home() -> None:
    start = exchange({"type": "http", "method": "GET", "path": "/"})[0]
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"a"] == b"b"
    assert headers[b"content-security-policy"].decode() == SECURITY_HEADERS["content-security-policy"]
    assert "http" not in SECURITY_HEADERS["content-security-policy"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_other_requests_do_not_reach_gradio(kind: str) -> None:
    sent = exchange({"type": kind, "method": "POST", "path": "/gradio_api/upload"})
    assert [message.get("status") for message in sent] == ([404, None] if kind == "http" else [])
