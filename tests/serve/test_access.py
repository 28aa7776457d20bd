"""Who may use the server."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil:1"])
def test_without_a_key_other_names_are_refused(server: Running, host: str) -> None:
    response = server.http.post(CHAT, json=chat(), headers={"Host": host})
    assert response.status_code == 403
    assert error_of(response)["code"] == "foreign_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine(server: Running, host: str) -> None:
    assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200
