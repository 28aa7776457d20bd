"""`polylm tokens`: ids, pieces and bytes; the chart of languages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.cli.tokens import chart_lines, language_counts
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.text.languages import LANGUAGES

TEXT = "Beijing 北京, 2\n\x1b é"


def test_rows(polylm: Callable[..., Any], tiny: TextGenerator, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    outcome = polylm("tokens", TEXT)
    assert outcome == polylm("tokens", "-", stdin=TEXT.encode()) == polylm("tokens", "--file", str(file))
    rows = [line.split("\t") for line in outcome.output.splitlines()]
    assert [int(row[0]) for row in rows] == tiny.snapshot.tokenizer.encode(TEXT)
    assert b"".join(bytes.fromhex(row[2]) for row in rows).decode() == TEXT
    assert "\x1b" not in outcome.output


def test_json(polylm: Callable[..., Any], tiny: TextGenerator) -> None:
    found = json.loads(polylm("tokens", "--json", TEXT).output)
    assert [token["id"] for token in found["tokens"]] == tiny.snapshot.tokenizer.encode(TEXT)
    assert found["count"] == len(found["tokens"])
    assert json.loads(polylm("tokens", "--json", "").output) == {"count": 0, "tokens": []}


def test_languages(polylm: Callable[..., Any], tiny: TextGenerator) -> None:
    counts = language_counts(tiny.snapshot.tokenizer)
    assert sorted(counts) == sorted(LANGUAGES.values())
    assert list(counts.values()) == sorted(counts.values())
    assert json.loads(polylm("tokens", "--languages", "--json").output) == counts
    lines = polylm("tokens", "--languages").output.splitlines()
    assert [int(line.split()[1]) for line in lines] == list(counts.values())


@pytest.mark.parametrize("width", [1, 8, 20, 33, 80, 300])
def test_chart_fits_its_screen(width: int) -> None:
    counts = {"Chinese": 5, "Vietnamese": 120, "English": 60}
    lines = chart_lines(counts, width)
    lengths = [len(line) - line.index(" ") for line in lines]
    assert lengths == sorted(lengths, key=lengths.index)
    assert all(len(line) <= max(width, 10) for line in lines)
    bars = [len(line.split()[2]) for line in lines]
    assert bars[0] <= bars[2] <= bars[1]
    if width >= 80:
        assert bars[2] == pytest.approx(bars[1] / 2, abs=1)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 2, "Give one of these"),
        (["a", "--file", "b"], 2, "Give one of these"),
        (["a", "--model", "13b"], 1, "Nothing may be downloaded"),
        (["a", "--model", "nothing"], 1, "is no folder"),
        (["a", "--model", "/"], 1, "tokenizer.model"),
    ],
)
def test_bad_calls(polylm: Callable[..., Any], arguments: list[str], code: int, reason: str) -> None:
    outcome = polylm("tokens", *arguments)
    assert (outcome.exit_code, outcome.output) == (code, "")
    assert reason in outcome.errors
    assert len(outcome.errors.splitlines()) == 1


def test_folder_with_a_tokenizer_only(polylm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((TINY_FOLDER / "tokenizer.model").read_bytes())
    assert polylm("tokens", "--model", str(tmp_path), "Hi") == polylm("tokens", "Hi")
