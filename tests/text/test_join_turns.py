"""Turns as clients of OpenAI's interface mean them."""

from __future__ import annotations

from typing import Any

import pytest

from modelscope_polylm.errors import InputError
from modelscope_polylm.text.prompts import FORMATS, check_messages, join_turns


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


S, D, U, A = (lambda content, role=role: turn(role, content) for role in ("system", "developer", "user", "assistant"))


@pytest.mark.parametrize(
    ("messages", "joined"),
    [
        ([U("a")], [U("a")]),
        ([U("a"), U("b"), U("c")], [U("a\n\nb\n\nc")]),
        ([U("a"), A("b"), U("c"), U("d")], [U("a"), A("b"), U("c\n\nd")]),
        ([S("s"), U("a")], [U("s\n\na")]),
        ([D("s"), U("a")], [U("s\n\na")]),
        ([S("s"), S("t"), U("a"), U("b")], [U("s\n\nt\n\na\n\nb")]),
        ([U("a"), A("b"), S("s"), U("c")], [U("a"), A("b"), U("s\n\nc")]),
        ([U("a"), S("s"), A("b"), U("c")], [U("a"), A("b"), U("s\n\nc")]),
        ([U("a"), S("s")], [U("a\n\ns")]),
        ([S(""), U("a"), S(" \n"), S(None)], [U("a")]),
        ([S("s")], [S("s")]),
        ([S("s"), A("b")], [A("b"), S("s")]),
        ([], []),
    ],
)
def test_prepend(messages: list[dict[str, Any]], joined: list[dict[str, Any]]) -> None:
    assert join_turns(messages, "prepend") == joined


def test_refuse() -> None:
    assert join_turns([S("s"), U("a"), U("b")]) == [S("s"), U("a\n\nb")]
    assert join_turns([S(""), U("a")], "refuse") == [U("a")]
    for role in ("system", "developer"):
        with pytest.raises(InputError, match=f"{role!r}, which PolyLM was not trained with"):
            check_messages(join_turns([turn(role, "s"), U("a")]), format=FORMATS["assistant"])


def test_what_is_no_message_stays_to_be_refused() -> None:
    wrong = [5, None, {"role": ["user"], "content": "a"}, U(b"a"), U([1]), U(None), U(""), {}]
    assert join_turns(wrong, "prepend") == wrong  # type: ignore[arg-type]


def test_the_messages_given_are_left_alone() -> None:
    given = [S("s"), U("a"), U("b")]
    join_turns(given, "prepend")
    assert given == [S("s"), U("a"), U("b")]
