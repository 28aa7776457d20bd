"""Flags of `polylm serve` from the command line, the environment and a file, in this order."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import OptionError
from modelscope_polylm.serve import command
from modelscope_polylm.serve.command import checked_keys
from modelscope_polylm.terminal.flags import checked_origins
from tests.commands import Outcome

Polylm = Callable[..., Outcome]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, polylm: Polylm) -> Callable[..., dict[str, Any]]:
    """Runs the command up to the server, and tells what it would serve."""
    from modelscope_polylm.serve import server

    seen: dict[str, Any] = {}

    def create(self: Any, generator: Any, names: Any, access: Any, limits: Any, defaults: Any, system: str) -> None:
        seen.update(names=names, access=access, limits=limits, defaults=defaults, system_message=system)

    def run(self: Any, host: str, port: int) -> None:
        seen.update(host=host, port=port)

    monkeypatch.setattr(server.NativeServer, "__init__", create)
    monkeypatch.setattr(server.NativeServer, "run", run)
    monkeypatch.setattr(command, "load_model", lambda *arguments, **more: arguments)
    monkeypatch.setattr("modelscope_polylm.serve.command.configure_logs", lambda *given: seen.update(logs=given))

    def start(*arguments: str) -> dict[str, Any]:
        seen.clear()
        outcome = polylm("serve", *arguments)
        assert outcome.exit_code == 0, outcome.errors
        return seen

    return start


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_flag_can_stand_in_a_file(
    started: Callable[..., dict[str, Any]], tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "polylm.yaml"
    file.write_text(
        f"model: tiny\nport: {port}\nmax-queue: 5\nmax_rows: 6\napi-key: [one, two]\ncors-origin: https://a.example\n"
        "metrics_key: seen\nsystem-message: refuse\nlog-level: warning\nlog_format: json\nname: mine\n"
        "temperature: 0.5\ndo-sample: true\nstop-strings: [a b, c]\nbad_words_ids: [[5, 6]]\ntop_k:\n"
    )
    seen = started("--config", str(file))
    assert (seen["port"], seen["limits"].queue, seen["limits"].rows, seen["names"]) == (port, 5, 6, ("mine",))
    assert (seen["access"].keys, seen["access"].metrics_key) == (("one", "two"), "seen")
    assert (seen["access"].origins, seen["system_message"]) == (("https://a.example",), "refuse")
    assert seen["logs"] == ("warning", "json")
    wanted = {"temperature": 0.5, "do_sample": True, "stop_strings": ["a b", "c"], "bad_words_ids": [[5, 6]]}
    assert seen["defaults"] == wanted
    # the environment wins over the file, and the command line over both
    monkeypatch.setenv("POLYLM_MAX_QUEUE", "7")
    monkeypatch.setenv("POLYLM_API_KEY", "three,four")
    monkeypatch.setenv("POLYLM_MAX_ROWS", "8")
    monkeypatch.setenv("POLYLM_CONFIG", str(file))
    seen = started("--max-rows", "9")
    assert (seen["limits"].queue, seen["limits"].rows, seen["access"].keys) == (7, 9, ("three", "four"))
    assert started("--api-key", "five", "--api-key", "six")["access"].keys == ("five", "six")


def test_every_flag_can_stand_in_the_environment(
    started: Callable[..., dict[str, Any]], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MODEL": "tiny",
        "PORT": str(port),
        "MAX_BODY": "5000",
        "NAME": "mine",
        "OPEN_METRICS": "true",
        "CORS_ORIGIN": "https://a.example https://b.example",
        "LOG_LEVEL": "debug",
        "NUM_BEAMS": "2",
    }.items():
        monkeypatch.setenv(f"POLYLM_{name}", value)
    seen = started()
    assert (seen["port"], seen["limits"].body, seen["names"], seen["logs"][0]) == (port, 5000, ("mine",), "debug")
    assert (seen["access"].open_metrics, seen["defaults"]) == (True, {"num_beams": 2})
    assert seen["access"].origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("max-queu: 5", "'max-queu', which is no flag here: did you mean max_queue"),
        ("max_queue: many", "--max-queue"),
        ("max_queue: [1, 2]", "give one value"),
        ("max_queue: 0", "--max-queue"),
        ("- a", "must hold flags and their values"),
        ("a: [", "cannot be read"),
        ("port: {a: b}", "give one value"),
        ("log-level: loud", "--log-level loud is unknown: choose debug or info"),
        ("\udce4", "cannot be read"),
    ],
)
def test_wrong_files(polylm: Polylm, tmp_path: Path, content: str, part: str) -> None:
    file = tmp_path / "polylm.yaml"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    outcome = polylm("serve", "tiny", "--config", str(file))
    assert outcome.exit_code == 2
    assert part in outcome.errors.replace("\n", " ")
    assert "Traceback" not in outcome.errors


def test_a_missing_file_and_a_missing_model(polylm: Polylm, tmp_path: Path) -> None:
    outcome = polylm("serve", "tiny", "--config", str(tmp_path / "none.yaml"))
    assert (outcome.exit_code, "none.yaml cannot be read" in outcome.errors.replace("\n", "")) == (2, True)
    (tmp_path / "empty.yaml").write_text("")
    assert polylm("serve", "--config", str(tmp_path / "empty.yaml")).exit_code == 2


def test_keys_come_from_files(
    started: Callable[..., dict[str, Any]], tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n")
    (tmp_path / "metrics").write_text("three\n")
    monkeypatch.setenv("POLYLM_METRICS_KEY_FILE", str(tmp_path / "metrics"))
    files = ("--api-key-file", str(tmp_path / "keys"), "--api-key", "zero")
    access = started("tiny", "--port", str(port), "--host", "0.0.0.0", *files)["access"]
    assert (access.keys, access.metrics_key) == (("zero", "one", "two"), "three")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "No such file or directory"),
        (b"", "holds no key"),
        (b"\n\n", "holds no key"),
        (b"\xff", "not UTF-8 text"),
        (b"a b", "white space"),
    ],
)
def test_files_without_a_key(polylm: Polylm, tmp_path: Path, content: bytes | None, part: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    for flag in ("--api-key-file", "--metrics-key-file"):
        outcome = polylm("serve", "tiny", flag, str(file))
        assert (outcome.exit_code, part in outcome.errors) == (2, True)


def test_metrics_have_one_key(polylm: Polylm) -> None:
    outcome = polylm("serve", "tiny", "--metrics-key", "a,b")
    assert (outcome.exit_code, "takes one key of its own, not 2" in outcome.errors) == (2, True)


@pytest.mark.parametrize("key", [" key", "key ", "key\n", "a b", "\tkey", "key\u00a0", "a\x00b"])
def test_a_key_with_white_space_would_lock_everybody_out(
    polylm: Polylm, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    outcome = polylm("serve", "tiny", "--api-key", key)
    assert outcome.exit_code == 2
    assert "white space" in outcome.errors
    assert key.strip() not in outcome.errors.replace("API key", "")
    if "\x00" not in key:
        monkeypatch.setenv("POLYLM_API_KEY", key)
        assert "white space" in polylm("serve", "tiny").errors


def test_keys() -> None:
    assert checked_keys([]) == checked_keys([""]) == checked_keys([","]) == ()
    assert checked_keys(["a", "b,c", "a"]) == ("a", "b", "c")
    assert checked_keys(["sécret"]) == ("sécret",)
    with pytest.raises(OptionError):
        checked_keys(["a", " b"])


@pytest.mark.parametrize("origin", ["example.org", "https://", "https://a.example/", "https://a.example/x", "null", ""])
def test_origins_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(OptionError, match="--cors-origin"):
        checked_origins("--cors-origin", [origin])
    assert checked_origins("--cors-origin", ["https://a.example:8443", "*"]) == ("https://a.example:8443", "*")
