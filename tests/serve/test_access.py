"""Who may use the server."""

from __future__ import annotations

import json

import pytest

import modelscope_polylm
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.serve.middleware import Access
from tests.serve.running import CHAT, Running, chat, error_of, serving

PROTECTED = ("/v1/models", "/v1/models/tiny", "/metrics")


def test_with_a_key(tiny: TextGenerator) -> None:
    with serving(tiny, Access(("sécret",))) as server:
        client = server.http
        for wrong in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "sécret".encode()},
            {"Authorization": b"\xff"},
        ):
            for path in PROTECTED:
                response = client.get(path, headers=wrong)
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
            assert client.post(CHAT, content=b"{", headers=wrong).status_code == 401  # before the body is read
        right = {"Authorization": "Bearer sécret".encode()}
        for path in PROTECTED:
            assert client.get(path, headers=right).status_code == 200
        assert client.post(CHAT, json=chat(), headers={"Authorization": "bearer sécret".encode()}).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}
        # with a key any name of the machine will do
        assert client.get("/v1/models", headers={**right, "Host": "server.example"}).status_code == 200


def test_several_keys_and_one_for_the_metrics(tiny: TextGenerator) -> None:
    with serving(tiny, Access(("one", "two"), metrics_key="prometheus")) as server:

        def status(path: str, key: str) -> int:
            return server.http.get(path, headers={"Authorization": f"Bearer {key}"}).status_code

        assert [status("/v1/models", key) for key in ("one", "two", "prometheus", "on")] == [200, 200, 401, 401]
        assert [status("/metrics", key) for key in ("one", "two", "prometheus", "three")] == [200, 200, 200, 401]
    with serving(tiny, Access(("one",), open_metrics=True)) as server:
        assert server.http.get("/metrics").status_code == 200
        assert server.http.get("/v1/models").status_code == 401
    with serving(tiny, Access(metrics_key="prometheus")) as server:
        assert server.http.get("/v1/models").status_code == 200
        assert server.http.get("/metrics").status_code == 401


def test_what_anybody_may_ask(tiny: TextGenerator) -> None:
    with serving(tiny, Access(("key",))) as server:
        assert server.http.get("/version").json() == {"version": modelscope_polylm.__version__}
        head = server.http.head("/health")
        assert (head.status_code, head.content) == (200, b"")
        assert "/v1/chat/completions" in server.http.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("keys", [(), ("key",)])
def test_pages_of_an_allowed_origin(tiny: TextGenerator, keys: tuple[str, ...]) -> None:
    own, other = "https://app.example:8443", "https://other.example"
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with serving(tiny, Access(keys, origins=(own,))) as server:
        key = {"Authorization": "Bearer key"}
        allowed = server.http.options(CHAT, headers={"Origin": own, **ask})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == own
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        answer = server.http.post(CHAT, json=chat(), headers={"Origin": own, **key})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == own
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        for foreign in (
            server.http.options(CHAT, headers={"Origin": other, **ask}),
            server.http.get("/v1/models", headers={"Origin": other}),
        ):
            assert foreign.status_code in (400, 401, 403)
            assert "access-control-allow-origin" not in foreign.headers


def test_a_page_of_another_origin_runs_nothing(server: Running) -> None:
    before = server.metric("polylm_prompt_tokens_total")
    for headers in (
        {"Origin": "https://evil.example", "Content-Type": "application/json"},
        {"Origin": "null", "Content-Type": "text/plain"},
        {"Content-Type": ""},
    ):
        response = server.http.post(CHAT, content=json.dumps(chat()), headers=headers)
        assert response.status_code == (403 if "Origin" in headers else 415)
        error_of(response)
    assert server.metric("polylm_prompt_tokens_total") == before


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil:1"])
def test_without_a_key_other_names_are_refused(server: Running, host: str) -> None:
    response = server.http.post(CHAT, json=chat(), headers={"Host": host})
    assert response.status_code == 403
    assert error_of(response)["code"] == "foreign_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine(server: Running, host: str) -> None:
    assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200
