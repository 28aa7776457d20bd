"""Dockerfile, compose file, Kubernetes manifests and systemd unit: right by their own tools, and true to the server."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelscope_polylm.serve.middleware import KNOWN_PATHS
from tests.deploy.files import DEPLOY, KEY, ROOT, check, documents, program, read
from tests.http.running import wait_for
from tests.page_tables import commands
from tests.processes import POLYLM, environment
from tests.serve.running import Running

FILES = ["Dockerfile", "compose.yaml", "kubernetes.yaml", "polylm.service", "polylm-gpu.conf"]
EXPOSURE = 20
"""Most that `systemd-analyze security` may find, in tenths: 0 is best, 100 unsafe."""


def test_dockerfile_has_no_fault() -> None:
    assert check(program("hadolint"), DEPLOY / "Dockerfile") == ""


def test_a_fault_of_a_dockerfile_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(read("Dockerfile").replace("USER 10001:10001", "USER root"))
    with pytest.raises(AssertionError, match="DL3002"):
        check(program("hadolint"), tmp_path / "Dockerfile")


def test_the_image_gets_what_the_package_is_built_from() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+)$", read("Dockerfile"), re.MULTILINE)
    sources = [source for line in copied for source in line.split()[:-1]]
    sent = [line[1:] for line in read("Dockerfile.dockerignore").splitlines() if line.startswith("!")]
    assert sorted(sources) == sorted(sent) == sorted(filter(lambda name: (ROOT / name).exists(), sources))
    assert {"setup.py", "pyproject.toml", "modelscope_polylm"} <= set(sources)


def test_every_image_ends_as_a_user_without_rights() -> None:
    stages = re.split(r"^FROM .* AS ", read("Dockerfile"), flags=re.MULTILINE)[2:]
    assert [stage.split()[0] for stage in stages] == ["cpu", "cuda"]
    assert {re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1] for stage in stages} == {"10001:10001"}


def health_check() -> list[str]:
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*?\])$", read("Dockerfile"), re.MULTILINE | re.DOTALL)
    assert found is not None
    return list(json.loads(found[1].replace("\\\n", "")))


def test_the_health_check_of_the_image_tells_a_server_from_none(server: Running) -> None:
    _, *arguments = health_check()
    for port, code in ((server.port, 0), (free_port(), 1)):
        here = [argument.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for argument in arguments]
        done = subprocess.run([sys.executable, *here], capture_output=True, timeout=60, check=False)
        assert done.returncode == code


@pytest.mark.parametrize("name", FILES)
def test_settings_are_flags_of_the_server(name: str) -> None:
    flags = {parameter.name for parameter in commands()["serve"].params}
    settings = re.findall(r"\bPOLYLM_([A-Z_]+)", read(name))
    assert settings
    assert {setting.lower() for setting in settings} - flags == set()


def test_compose_file() -> None:
    check(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    [compose] = documents("compose.yaml")
    assert set(compose["services"]) == {"polylm", "polylm-gpu", "nginx", "prometheus"}
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            is_there = (DEPLOY / source).exists() or source == "./tls"  # certificates are the user's
            assert source in compose["volumes"] or is_there, volume
    for name in ("polylm", "polylm-gpu"):
        service = compose["services"][name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["build"]["target"] == service["image"].partition(":")[2]
        assert {f"/run/secrets/{secret}" for secret in service["secrets"]} <= set(service["environment"].values())


def test_kubernetes_manifests() -> None:
    check(program("kubernetes-validate"), "--strict", DEPLOY / "kubernetes.yaml")
    kinds = {document["kind"]: document for document in documents("kubernetes.yaml")}
    pod = kinds["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in KNOWN_PATHS
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["spec"]["securityContext"]["runAsNonRoot"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert kinds["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    [port] = kinds["Service"]["spec"]["ports"]
    assert port["targetPort"] in [each["name"] for each in container["ports"]]


def test_a_fault_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(read("kubernetes.yaml").replace("replicas: 1", "replica: 1"))
    with pytest.raises(AssertionError, match="replica"):
        check(program("kubernetes-validate"), "--strict", tmp_path / "wrong.yaml")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the unit, alone and with the file for GPUs; their program is one of this machine."""
    program("systemd-analyze")
    for name, files in (("polylm", ["polylm.service"]), ("polylm-gpu", ["polylm.service", "polylm-gpu.conf"])):
        text = "\n".join(map(read, files)).replace("/opt/polylm/bin/polylm", sys.executable)
        (tmp_path / f"{name}.service").write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", ["polylm.service", "polylm-gpu.service"])
def test_the_unit_is_right_and_exposes_little(units: Path, name: str) -> None:
    assert check(program("systemd-analyze"), "verify", "--man=no", units / name) == ""
    check_security(units / name)


def check_security(unit: Path) -> None:
    check(program("systemd-analyze"), "security", "--offline=true", f"--threshold={EXPOSURE}", unit)


def test_an_unprotected_unit_is_noticed(units: Path) -> None:
    (units / "open.service").write_text(f"[Service]\nExecStart={sys.executable}\n")
    with pytest.raises(AssertionError, match="UNSAFE"):
        check_security(units / "open.service")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[str]:
    """The address of a server that runs by the command of the unit, its keys in a credential of systemd's."""
    (tmp_path / "api_key").write_text(f"{KEY}\n")
    port = free_port()
    found = re.search(r"^ExecStart=(.+)$", read("polylm.service"), re.MULTILINE)
    assert found is not None
    _, *arguments = shlex.split(found[1].replace("%d", str(tmp_path)).replace("--port 8000", f"--port {port}"))
    settings = dict(re.findall(r"(POLYLM_\w+)=(\S+)", read("polylm.service")))
    process = subprocess.Popen([*POLYLM, *arguments], env=environment(**settings), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: process.poll() is not None or is_open(port), seconds=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert "Traceback" not in process.communicate(timeout=60)[1]


def test_the_command_of_the_unit_serves_with_the_key_of_its_file(started: str) -> None:
    assert urllib.request.urlopen(f"{started}/health", timeout=30).status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{started}/v1/models", timeout=30)
    asked = urllib.request.Request(f"{started}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert json.load(urllib.request.urlopen(asked, timeout=30))["data"][0]["id"] == "tiny"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
