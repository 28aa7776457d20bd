"""`polylm score`: likelihoods are those of transformers on the same package, and a bad row stays alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from modelscope_polylm.text.languages import TRANSLATIONS
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from tests.commands import Outcome

Polylm = Callable[..., Outcome]
ROWS: list[dict[str, Any]] = [
    {"context": "Rome is the capital of Italy.\n", "continuation": "Rom ist die Hauptstadt von Italien.", "id": "a"},
    {"context": "Rome ", "continuation": "is the capital"},
    {"context": "", "continuation": "Rome"},
    *({"text": text} for text in TRANSLATIONS.values()),
]


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_likelihoods_are_those_of_transformers(polylm: Polylm, package: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    result = polylm("score", str(package), str(file), "--device", "cpu", "--dtype", "float32", "--tokens")
    assert result.exit_code == 0
    found = records(result.output)
    model: Any = GPT2LMHeadModel.from_pretrained(package, dtype=torch.float32)
    tokenizer = PolyLMTokenizer.from_pretrained(package)
    for row, record in zip(ROWS, found, strict=True):
        context = row.get("context", "").rstrip()
        ids = tokenizer.encode(row.get("context", "") + row.get("text", row.get("continuation")))
        start = len(tokenizer.encode(context)) if context else 0
        with torch.inference_mode():
            logits = model(torch.tensor([[2, *ids]])).logits[0] if not start else model(torch.tensor([ids])).logits[0]
        logprobs = logits.log_softmax(-1)
        first = start - 1 if start else 0
        expected = [float(logprobs[first + index, token]) for index, token in enumerate(ids[start:])]
        assert [logprob for _, logprob in record["token_log_likelihoods"]] == pytest.approx(expected, abs=1e-4)
        assert [piece for piece, _ in record["token_log_likelihoods"]] == [*map(tokenizer.id_to_piece, ids[start:])]
        assert record["tokens"] == len(expected)
        assert record["log_likelihood"] == pytest.approx(sum(expected), abs=1e-3)
        assert record["perplexity"] == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-4)
    assert found[0]["id"] == "a" and [record["line"] for record in found] == list(range(1, len(ROWS) + 1))
    total, tokens = sum(record["log_likelihood"] for record in found), sum(record["tokens"] for record in found)
    assert f"{tokens:,} tokens: log-likelihood {total:,.2f}" in result.errors


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ""}, "nothing that could be scored"),
        ({"context": "a", "continuation": ""}, "nothing that could be scored"),
        ({"context": "a"}, "needs a 'text', or a 'context' and a 'continuation'"),
        ({"text": "a", "context": "b"}, "needs a 'text', or"),
        ({"text": "a", "continuation": "b"}, "needs a 'text', or"),
        ({"text": "a", "contxt": "b"}, "'contxt', which says nothing here: did you mean context?"),
        ({"text": 5}, "type str, not 5"),
        ({"text": "a " * 3000}, "but the context holds 512: split it"),
        ([1], "a text or an object"),
        ({"text": "\ud800"}, "surrogate"),
    ],
)
def test_a_bad_row_stays_alone(polylm: Polylm, tmp_path: Path, row: Any, message: str) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "Rome"}, row, {"text": "Paris"}])
    result = polylm("score", str(file), "--device", "cpu")
    first, bad, last = records(result.output)
    assert result.exit_code == 0 and "1 of 3 rows hold an error." in result.errors
    assert message in bad["error"] and "log_likelihood" not in bad
    assert first["tokens"] and last["tokens"]


def test_lines_of_text(polylm: Polylm, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("Rome is the capital of Italy.\nParis\n", encoding="utf-8")
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": line} for line in file.read_text().splitlines()])
    assert polylm("score", str(file)).output == polylm("score", str(rows)).output


def test_nothing_to_score(polylm: Polylm, tmp_path: Path) -> None:
    result = polylm("score", str(write_rows(tmp_path / "rows.jsonl", [{"text": ""}])))
    assert result.exit_code == 1 and "1 of 1 rows hold an error." in result.errors
    missing = polylm("score", str(tmp_path / "none.jsonl"))
    assert missing.exit_code == 2 and "none.jsonl" in missing.errors
