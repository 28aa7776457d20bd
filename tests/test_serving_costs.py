"""The tables of docs/scale.md are those that benchmarks/serving_costs.py computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serving_costs import (
    PAGE,
    bytes_per_token,
    cost_lines,
    price_of,
    renewed,
    result_files,
    sizing_lines,
    speeds,
)


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page, result_files(), price_of(page)) == page, (
        "run: python -m benchmarks.serving_costs --write docs/scale.md"
    )
    assert "819,200 bytes" in page and "a million output tokens at" in page


def test_memory() -> None:
    assert (bytes_per_token("13b"), bytes_per_token("1.7b")) == (819_200, 196_608)
    assert any(
        line.startswith("| 13B | 27.81 GB | 819,200 bytes | 1 x 24 GB | does not fit") for line in sizing_lines()
    )


def test_costs(tmp_path: Path) -> None:
    results = [
        {"work": "greedy, 1 row, 32 + 128", "engine": "a", "unit": "ms/step", "value": 10.0},
        {"work": "greedy, 64 rows, 128 + 128", "engine": "a", "unit": "tokens/s", "value": 2000.0},
        {"work": "4 beams, 1 row, 32 + 128", "engine": "a", "unit": "ms/step", "value": 9.0},
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"device": "x", "results": results}))
    assert [(speed.rows, speed.tokens_per_second) for speed in speeds([file])] == [(1, 100.0), (64, 2000.0)]
    lines = list(cost_lines([file], 3.6))
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["10.00", "0.50"]
    assert "at 3.60 an hour" in lines[0]
    with pytest.raises(ValueError, match="names no price"):
        price_of("nothing")
