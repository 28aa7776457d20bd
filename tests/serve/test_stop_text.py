"""Stop strings are cut off, and no part of one is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscope_polylm.serve.requests import StopText


def pushed(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    stop_text = StopText(stops)
    shown = [stop_text.push(piece) for piece in pieces]
    return [*shown, "" if stop_text.found else stop_text.finish()], stop_text.found


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""]),
        (["ab", "cd"], ["bc"], ["a", "", ""]),
        (["ab", "d"], ["bc"], ["a", "bd", ""]),
        (["ab"], ["bc"], ["a", "b"]),
        (["a\n", "\nb"], ["\n\n"], ["a", "", ""]),
        (["xyz"], ["z", "y"], ["x", ""]),
        (["aab"], ["aaab"], ["aab", ""]),
        (["aaa", "b"], ["aab"], ["a", "", ""]),
    ],
)
def test_examples(pieces: list[str], stops: list[str], shown: list[str]) -> None:
    assert pushed(pieces, stops)[0] == shown


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_same_as_cutting_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    shown, found = pushed(pieces, stops)
    # a stop string ends a text in the piece in which it becomes complete
    text, expected, is_cut = "", "", False
    for piece in pieces:
        text += piece
        starts = [text.find(stop) for stop in stops if stop in text]
        if starts:
            expected, is_cut = text[: min(starts)], True
            break
    assert "".join(shown) == (expected if is_cut else text)
    assert found == is_cut
