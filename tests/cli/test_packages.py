"""`polylm package`, `verify`, `upload`: what people see of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.processes import ended_seconds, run_polylm, terminal

Polylm = Callable[..., Any]


def test_a_package_is_written_and_quickly_found_to_have_no_faults(polylm: Polylm, tmp_path: Path) -> None:
    out = tmp_path / "package"
    written = polylm("package", "tiny", str(out))
    assert written.exit_code == 0, written.errors
    assert "sha256 verified" in written.output
    assert (out / "tokenizer.json").is_file()
    before = ended_seconds()
    checked = run_polylm("verify", str(out), "--device", "cpu")
    seconds = ended_seconds() - before
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"all of 2\d,\d{3} strings", " ".join(checked.stdout.split()))
    assert seconds < 10  # with all imports


def test_json(polylm: Polylm, tmp_path: Path) -> None:
    report = json.loads(polylm("package", "tiny", str(tmp_path / "package"), "--json").output)
    assert "model.safetensors" in report["files"]
    rows = json.loads(polylm("verify", "tiny", "--no-run", "--json").output)
    assert {"check", "status", "meaning", "repair"} == set(rows[0])


def test_a_quantised_package(polylm: Polylm, tmp_path: Path) -> None:
    out, text = tmp_path / "package", tmp_path / "text.txt"
    text.write_text("Rome is the capital of Italy.", encoding="utf-8")
    flags = ("--quantization", "int4", "--calibration", str(text), "--device", "cpu")
    written = polylm("package", "tiny", str(out), *flags)
    assert written.exit_code == 0, written.errors
    assert "in int4, errors made good over a text of your own" in written.output
    shown = polylm("info", str(out)).output
    assert "those of projections in int4 (GPTQ)" in shown
    assert "weights in fp8" not in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "round"), "--method only quantise: name the bits"),
        (("--calibration", "x.txt", "--device", "cpu"), "--calibration, --device only quantise"),
        (("--quantization", "int3"), "quantization='int3' cannot be packaged"),
        (("--quantization", "int4", "--method", "gptk"), "method='gptk' is unknown: did you mean gptq?"),
        (("--quantization", "int4", "--calibration", "missing.txt"), "missing.txt cannot be read"),
        (("--quantization", "int4", "--dtype", "float32"), "other tensors in 16 bits"),
    ],
)
def test_quantizations_that_make_no_sense(polylm: Polylm, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    outcome = polylm("package", "tiny", str(tmp_path / "package"), *flags)
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.errors.split())


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


def test_comparison_with_a_text_of_ones_own(polylm: Polylm, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Rome is the capital of Italy.\r\nTokyo is the capital of Japan.\n", encoding="utf-8")
    arguments = ("verify", "tiny", "--against", "tiny", "--text", str(file), "--device", "cpu")
    shown = polylm(*arguments, "--max-kl", "0")
    assert shown.exit_code == 0, shown.errors
    assert "Greedy answers: 1 of 1 are the same." in shown.output
    found = json.loads(polylm(*arguments, "--json").output)
    assert found["total"]["kl"] == 0
    assert found["total"]["agreement"] == 1
    rounded = json.loads(polylm(*arguments, "--quantization", "int4", "--json").output)
    assert 0 < rounded["total"]["kl"] < 0.1
    assert polylm(*arguments, "--quantization", "int4", "--max-kl", "1e-9").exit_code == 1


def test_exit_code_of_a_comparison_tells_whether_the_divergence_is_too_large(polylm: Polylm, tmp_path: Path) -> None:
    low = tmp_path / "float16"
    assert polylm("package", "tiny", str(low), "--dtype", "float16").exit_code == 0
    weights = load_file(low / "model.safetensors")
    weights["transformer.wpe.weight"] *= 1.1
    save_file(weights, low / "model.safetensors", metadata={"format": "pt"})
    file = tmp_path / "text.txt"
    file.write_text("Rome is the capital of Italy.", encoding="utf-8")
    arguments = ("verify", str(low), "--against", "tiny", "--text", str(file), "--device", "cpu")
    assert polylm(*arguments, "--max-kl", "1e-9").exit_code == 1
    assert polylm(*arguments, "--max-kl", "100").exit_code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "x.txt"), "--text only compare with another model"),
        (("--max-kl", "1"), "--max-kl only compare"),
        (("--against", "tiny", "--no-run"), "--no-run leaves nothing to compare"),
        (("--against", "tiny", "--text", "missing.txt"), "missing.txt cannot be read"),
        (("--against", "tiny", "--quantization", "int3"), "quantization='int3' is unknown"),
        (("--quantization", "int8"), "--quantization only compare with another model"),
        (("--against", "tiny", "--max-kl", "-1"), "greater than or equal to 0"),
    ],
)
def test_comparisons_that_make_no_sense(polylm: Polylm, flags: tuple[str, ...], message: str) -> None:
    outcome = polylm("verify", "tiny", "--device", "cpu", *flags)
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.errors.split())
