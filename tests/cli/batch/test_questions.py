"""Rows become inputs: columns, templates, messages."""

from __future__ import annotations

from typing import Any

import pytest

from modelscope_polylm.cli.batch.rows import Question
from modelscope_polylm.errors import InputError, OptionError

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("question", "value", "expected"),
    [
        (Question(), "a", "a"),
        (Question(), {"text": "a", "id": 1}, "a"),
        (Question("body"), {"text": "a", "body": "b"}, "b"),
        (Question(), {"messages": MESSAGES, "text": "a"}, {"messages": MESSAGES}),
        (Question("text"), {"messages": MESSAGES, "text": "a"}, "a"),
        (Question(template="[{text}]"), "a", "[a]"),
        (Question(template="{title}: {text} {text}"), {"title": "T", "text": "a"}, "T: a a"),
        (Question("body", "{text}{body}"), {"body": "b", "text": "a"}, "bb"),
        (Question(template="{text} {n} {list}"), {"text": "{n}", "n": 5, "list": ["é"]}, '{n} 5 ["é"]'),
        (Question(template='{"q": "{text}"} { text }'), "a", '{"q": "a"} { text }'),
    ],
)
def test_input(question: Question, value: Any, expected: Any) -> None:
    assert question.of(value) == expected


@pytest.mark.parametrize(
    ("question", "value", "reason"),
    [
        (Question(), {"txt": "a"}, "no 'text'; it has 'txt'"),
        (Question(), {}, "it has nothing"),
        (Question(), 5, "not 5"),
        (Question(), None, "not None"),
        (Question(), ["a"], "text or an object"),
        (Question(template="{title}"), "a", "no 'title'"),
    ],
)
def test_rows_that_do_not_fit(question: Question, value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        question.of(value)


@pytest.mark.parametrize(
    ("question", "known", "reason"),
    [
        (Question(), ["txt"], "no column 'text': did you mean 'txt'"),
        (Question("body"), ["id", "n"], "no column 'body': it has 'id', 'n'"),
        (Question(template="{titel} {text}"), ["title", "text"], "did you mean 'title'"),
        (Question("body", "{text}"), ["text"], "no column 'body'"),
        (Question(template="no place"), None, "no place for the text"),
    ],
)
def test_columns_that_a_file_lacks(question: Question, known: list[str] | None, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        question.check_columns(known)


def test_columns_that_are_there() -> None:
    Question().check_columns(["text"])
    Question().check_columns(None)
    Question("b", "{text} {c}").check_columns(["b", "c"])
