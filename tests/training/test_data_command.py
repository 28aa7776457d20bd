"""`polylm data`: files in, one file and a table out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Outcome
from tests.training.published import task, write_all, write_json, write_lines

Polylm = Callable[..., Outcome]


def read_lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_all_nine_sources(polylm: Polylm, tmp_path: Path) -> None:
    named = [f"{name}={path}" for name, path in write_all(tmp_path / "in").items()]
    outputs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for out in outputs:
        result = polylm("data", *named, "--out", str(out), "--report", str(tmp_path / "report.json"))
        assert result.exit_code == 0, result.errors
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    rows = read_lines(outputs[0])
    assert len(rows) == 15
    assert rows[2] == {
        "messages": [{"role": "user", "content": "Who?\n\nAda."}, {"role": "assistant", "content": "Ada"}],
        "source": "dolly",
        "language": "en",
    }
    report = json.loads((tmp_path / "report.json").read_text())
    for row in report["rows"]:
        assert row["read"] == row["kept"] + sum(row["left_out"].values())
    assert sum(row["kept"] for row in report["rows"]) == 15
    assert report["card_rows"]["dolly"] == 15_011
    assert "CC BY-SA 3.0" in result.output and "15,011" in result.output and "a message of 'bing'" in result.output
    assert sorted(tmp_path.iterdir()) == sorted([*outputs, tmp_path / "in", tmp_path / "report.json"])


def test_what_it_writes_it_reads_again(polylm: Polylm, tmp_path: Path) -> None:
    named = [f"{name}={path}" for name, path in write_all(tmp_path / "in").items()]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert polylm("data", *named, "--out", str(first)).exit_code == 0
    assert polylm("data", f"messages={first}", "--out", str(second)).exit_code == 0
    assert [row["messages"] for row in read_lines(second)] == [row["messages"] for row in read_lines(first)]


def test_duplicates_across_sources(polylm: Polylm, tmp_path: Path) -> None:
    one = write_json(tmp_path / "alpaca_gpt4_data.json", [task("Q", "A"), task("Q", "B"), task(" Q", "A ")])
    two = write_lines(tmp_path / "own.jsonl", [task("Q", "B"), task("Q", "C")])
    out = tmp_path / "out.jsonl"
    result = polylm("data", f"gpt4_alpaca_en={one}", f"alpaca={two}", "--out", str(out), "--json")
    left_out = [row["left_out"] for row in json.loads(result.output)["rows"]]
    assert left_out == [{"the same as a record of gpt4_alpaca_en": 1}] * 2
    assert len(read_lines(out)) == 3


def test_bad_lines_are_counted(polylm: Polylm, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "a"}\n{"text": \n[]\n{"texts": "b"}\n')
    result = polylm("data", f"text={tmp_path / 'own.jsonl'}", "--out", str(tmp_path / "out.jsonl"), "--json")
    (row,) = json.loads(result.output)["rows"]
    assert row["left_out"] == {"not a JSON object": 2, "no field text": 1}


@pytest.mark.parametrize(("source", "allowed"), [("gpt4_alpaca_en", False), ("multilingual_alpaca", False)])
def test_licences_that_forbid_commercial_use(polylm: Polylm, tmp_path: Path, source: str, allowed: bool) -> None:
    files = write_all(tmp_path / "in")
    out = tmp_path / "out.jsonl"
    result = polylm("data", f"{source}={files[source]}", "--out", str(out), "--use", "commercial")
    assert result.exit_code == 2 and "may not be used commercially" in result.errors
    assert not out.exists()
    assert polylm("data", f"{source}={files[source]}", "--out", str(out)).exit_code == 0


def test_unclear_licences_are_told(polylm: Polylm, tmp_path: Path) -> None:
    files = write_all(tmp_path / "in")
    arguments = [f"flan_v2={files['flan_v2']}", f"dolly={files['dolly']}", "--out", str(tmp_path / "out.jsonl")]
    result = polylm("data", *arguments, "--use", "commercial")
    assert result.exit_code == 0
    assert result.errors.count("Warning") == 1 and "flan_v2" in result.errors


def test_a_file_of_another_source(polylm: Polylm, tmp_path: Path) -> None:
    files = write_all(tmp_path / "in")
    out = tmp_path / "out.jsonl"
    result = polylm("data", f"dolly={files['share_gpt']}", "--out", str(out))
    assert result.exit_code == 2 and "look like those of share_gpt" in result.errors
    result = polylm("data", f"multilingual_alpaca={files['gpt4_alpaca_en']}", "--out", str(out))
    assert result.exit_code == 2 and "does not tell its language" in result.errors
    assert not out.exists() and list(tmp_path.iterdir()) == [tmp_path / "in"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doly=x.jsonl"], "did you mean dolly"),
        (["flan_v2"], "ModelScope has no known copy of flan_v2"),
        (["dolly=none.jsonl"], "does not exist"),
        (["dolly=x", "--use", "comercial"], "did you mean commercial"),
    ],
)
def test_wrong_arguments(polylm: Polylm, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = polylm("data", *arguments, "--out", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 2 and message in result.errors


def test_a_folder_that_does_not_exist_is_made(polylm: Polylm, tmp_path: Path) -> None:
    file, out = write_lines(tmp_path / "own.jsonl", [{"text": "a"}]), tmp_path / "none" / "out.jsonl"
    assert polylm("data", f"text={file}", "--out", str(out)).exit_code == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1


def test_a_folder_that_is_a_file(polylm: Polylm, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "own.jsonl", [{"text": "a"}])
    result = polylm("data", f"text={file}", "--out", str(file / "out.jsonl"))
    assert result.exit_code == 1 and "cannot be written" in result.errors


@pytest.mark.slow  # ModelScope's client tries for a while
def test_without_a_hub(polylm: Polylm, tmp_path: Path) -> None:
    result = polylm("data", "dolly", "--out", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 1 and "cannot be fetched from ModelScope" in result.errors
