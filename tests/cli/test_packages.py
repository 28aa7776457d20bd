"""`polylm package`, `verify`, `upload`: what people see of them."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.processes import run_polylm, terminal

Polylm = Callable[..., Any]


def test_a_package_is_written_and_quickly_found_to_have_no_faults(polylm: Polylm, tmp_path: Path) -> None:
    out = tmp_path / "package"
    written = polylm("package", "tiny", str(out))
    assert written.exit_code == 0, written.errors
    assert "sha256 verified" in written.output
    assert (out / "tokenizer.json").is_file()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    checked = run_polylm("verify", str(out), "--device", "cpu")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"all of 2\d,\d{3} strings", " ".join(checked.stdout.split()))
    # processor time with all imports, because the wall clock measures what else the machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_json(polylm: Polylm, tmp_path: Path) -> None:
    report = json.loads(polylm("package", "tiny", str(tmp_path / "package"), "--json").output)
    assert "model.safetensors" in report["files"]
    rows = json.loads(polylm("verify", "tiny", "--no-run", "--json").output)
    assert {"check", "status", "meaning", "repair"} == set(rows[0])


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    with terminal("package", "tiny", str(tmp_path / "package"), columns=20) as screen:
        assert screen.wait() == 0
        assert "\x1b[" in screen.raw
        assert "sha256 verified" in screen.screen


def test_a_folder_in_use_is_not_overwritten(polylm: Polylm, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    outcome = polylm("package", "tiny", str(tmp_path))
    assert outcome.exit_code == 2
    assert str(tmp_path) in outcome.errors
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_broken_snapshot_is_a_fault(polylm: Polylm, random_snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((random_snapshot / "config.json").read_text())
    outcome = polylm("verify", str(tmp_path), "--device", "cpu")
    assert outcome.exit_code == 1
    assert "tokenizer.model" in outcome.output


def test_only_packages_are_uploaded(polylm: Polylm, tmp_path: Path) -> None:
    outcome = polylm("upload", str(tmp_path), "somebody/model")
    assert outcome.exit_code != 0
    assert outcome.errors.startswith("Error: ")
    assert outcome.errors.count("\n") == 1
