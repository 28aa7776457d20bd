"""`polylm web`: where it listens, what it needs, and the requirements of a Studio."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelscope_polylm.errors import DependencyError, OptionError, install_command
from modelscope_polylm.web.command import OLDEST_GRADIO, check_address, require_gradio
from tests.processes import POLYLM, environment

ROOT = Path(__file__).parents[2]


def test_a_taken_port_is_told_before_the_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"Cannot listen on 127.0.0.1 port {port}"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_an_unknown_host() -> None:
    with pytest.raises(OptionError, match=r"Cannot listen on no\.such\.host\.invalid port 7860"):
        check_address("no.such.host.invalid", 7860)


def fake_gradio(version: str) -> ModuleType:
    module = ModuleType("gradio")
    module.__version__ = version  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("gradio", "message"),
    [
        (None, r"needs gradio .*: install it with pip install '"),
        (fake_gradio("5.49.1"), r"needs gradio 6\.31 or newer, not 5\.49\.1"),
        (fake_gradio("6.9.0"), r"not 6\.9\.0"),
    ],
)
def test_gradio_is_missing_or_old(monkeypatch: pytest.MonkeyPatch, gradio: ModuleType | None, message: str) -> None:
    monkeypatch.setitem(sys.modules, "gradio", gradio)  # None: importing it fails
    with pytest.raises(DependencyError, match=message):
        require_gradio()


@pytest.mark.parametrize("version", ["6.31.0", "6.32.0b1", "7.0"])
def test_gradio_is_there_and_told_not_to_call_home(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    monkeypatch.setitem(sys.modules, "gradio", fake_gradio(version))
    require_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_the_command_says_what_is_missing(polylm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    outcome = polylm("web")
    assert (outcome.exit_code, outcome.output) == (1, "")
    assert install_command("web") in outcome.errors


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "70000"], ["--at-once", "0"], ["--waiting", "x"]])
def test_impossible_flags(polylm: Callable[..., Any], arguments: list[str]) -> None:
    assert polylm("web", *arguments).exit_code == 2


def test_requirements_of_a_studio_are_those_of_the_package() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    lists: dict[str, Any] = {}
    shared = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)]
    exec(compile(ast.Module(shared, []), "setup.py", "exec"), lists)
    keywords = {word.arg: word.value for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
    base, extras = (eval(ast.unparse(keywords[name]), lists) for name in ("install_requires", "extras_require"))
    extra = extras["web"]
    lines = (ROOT / "examples" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [*base, *extra]
    assert extra[0] == f"gradio>={'.'.join(map(str, OLDEST_GRADIO))}"


def test_ctrl_c_with_an_open_page_shows_no_traceback() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*POLYLM, "web", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == f"Open http://127.0.0.1:{port} in a browser; Ctrl-C ends.\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as page:
        # a browser holds this stream open
        page.sendall(f"GET /en/gradio_api/heartbeat/a HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert page.recv(100).startswith(b"HTTP/1.1 200 OK")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "Interrupted.\n"
    assert process.returncode == 130
