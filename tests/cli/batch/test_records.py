"""How outcomes are written: JSON that every reader accepts, and tables with the columns of the input."""

from __future__ import annotations

import csv
import datetime
import io
import json
from decimal import Decimal
from typing import Any

import pytest

from modelscope_polylm.backends.base import Completion
from modelscope_polylm.cli.batch.formats import read_json
from modelscope_polylm.cli.batch.records import TableRecords, answer_lines
from modelscope_polylm.cli.batch.requests import Outcome, RowAnswers
from modelscope_polylm.cli.batch.rows import Row
from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generator import GenerationResult
from modelscope_polylm.inputs import Prompt

LINES = answer_lines()


def answered(*texts: str, score: float = -1.5) -> RowAnswers:
    answers = [Completion([1, 2], score, finish_reason="eos") for _ in texts]
    return RowAnswers(Prompt("a", [1]), GenerationResult("a", list(texts), answers))


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def written(row: Row, outcome: Outcome) -> dict[str, Any]:
    """The object of a row's line, read as strict readers do."""
    record = LINES.record(row, outcome).decode()
    assert record.count("\n") == 1 and record.endswith("\n")
    found: dict[str, Any] = json.loads(record, parse_constant=refuse)
    return found


def test_answers_and_errors() -> None:
    assert written(Row(3, {"id": [1], "text": "a"}), answered("b")) == {
        "line": 3,
        "id": [1],
        "text": "b",
        "tokens": 2,
        "finish_reason": "eos",
    }
    assert written(Row(4, "a"), InputError("why")) == {"line": 4, "error": "why"}
    assert written(Row(5, "a"), answered("b", "c"))["texts"] == ["b", "c"]


def test_any_text_becomes_one_line_of_json() -> None:
    for text in ("\n\r\u2028\x85\0", "\ud800 lone", '"\\', "\U0001f600", '", "error": "'):
        record = LINES.record(Row(1, "a"), answered(text))
        assert written(Row(1, "a"), answered(text))["text"] == text
        assert not LINES.is_error(record)
    assert LINES.is_error(LINES.record(Row(1, "a"), InputError("why")))
    assert not LINES.is_error(LINES.record(Row(1, {"id": {"error": 1}, "text": "a"}), answered("b")))


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_json_cannot_express_become_null(score: float) -> None:
    assert written(Row(1, "a"), answered("b", "c", score=score))["scores"] == [None, None]


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (read_json("1e400"), "1e400"),
        (read_json("[-1e999]"), ["-1e999"]),
        (float("nan"), None),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.50"), "1.50"),
        (b"ab", "b'ab'"),
    ],
)
def test_any_id_can_be_read_again(identity: Any, expected: Any) -> None:
    assert written(Row(1, {"id": identity, "text": "a"}), answered("b"))["id"] == expected


def test_an_id_that_is_nested_too_deeply() -> None:
    identity: Any = 1
    for _ in range(5000):
        identity = [identity]
    assert written(Row(1, {"id": identity}), answered("b")) == {
        "line": 1,
        "error": "The row's id is nested too deeply.",
    }


def table(format: TableRecords, *outcomes: tuple[Row, Outcome]) -> list[list[str]]:
    content = format.header + b"".join(format.record(row, outcome) for row, outcome in outcomes)
    return list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=format.delimiter))


def test_tables_keep_the_columns_of_the_input() -> None:
    value = {"text": 'a "b",\nc', "id": 1, "lang": "", "n": None, "list": ["é"], "day": datetime.date(2026, 1, 2)}
    found = table(
        TableRecords(list(value), ",", several=False),
        (Row(1, value), answered("x,\r\ny")),
        (Row(2, {**value, "id": read_json("1e400")}), InputError("why")),
        (Row(3, error="The line is empty."), InputError("The line is empty.")),
    )
    assert found == [
        ["text", "id", "lang", "n", "list", "day", "answer", "tokens", "finish_reason", "error"],
        ['a "b",\nc', "1", "", "", '["é"]', "2026-01-02", "x,\r\ny", "2", "eos", ""],
        ['a "b",\nc', "1e400", "", "", '["é"]', "2026-01-02", "", "", "", "why"],
        ["", "", "", "", "", "", "", "", "", "The line is empty."],
    ]


def test_tables_of_texts_and_of_several_answers() -> None:
    found = table(TableRecords(["text"], "\t", several=True), (Row(1, "a\tb"), answered("x", "y")))
    assert found[0] == ["text", "answer", "tokens", "finish_reason", "answers", "scores", "error"]
    assert found[1] == ["a\tb", "x", "2", "eos", '["x", "y"]', "[-1.5, -1.5]", ""]
    nothing = answered("x", "y", score=float("nan"))
    assert table(TableRecords(["text"], ",", several=True), (Row(1, "a"), nothing))[1][5] == "[null, null]"


@pytest.mark.parametrize("name", ["answer", "tokens", "finish_reason", "error"])
def test_columns_that_the_output_needs(name: str) -> None:
    with pytest.raises(OptionError, match=f"has a column '{name}', which the output needs"):
        TableRecords(["text", name], ",", several=False)
    TableRecords(["text", "scores"], ",", several=False)
    with pytest.raises(OptionError, match="'scores'"):
        TableRecords(["text", "scores"], ",", several=True)
