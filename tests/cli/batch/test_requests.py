"""Rows become inputs: columns, templates, messages."""

from __future__ import annotations

from typing import Any

import pytest

from modelscope_polylm.cli.batch.requests import PromptTemplate
from modelscope_polylm.errors import InputError, OptionError

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("template", "value", "expected"),
    [
        (PromptTemplate(), "a", "a"),
        (PromptTemplate(), {"text": "a", "id": 1}, "a"),
        (PromptTemplate("body"), {"text": "a", "body": "b"}, "b"),
        (PromptTemplate(), {"messages": MESSAGES, "id": 1}, {"messages": MESSAGES}),
        (PromptTemplate(), MESSAGES, {"messages": MESSAGES}),
        (PromptTemplate(), {"text": "a", "messages": None, "max_new_tokens": None, "lang": None}, "a"),
        (PromptTemplate(), {"text": None, "messages": MESSAGES}, {"messages": MESSAGES}),
        (PromptTemplate(keeps_columns=True), {"text": "a", "lang": "en"}, "a"),
        (PromptTemplate("text"), {"text": "a", "lang": "en"}, "a"),
        (PromptTemplate(template="{text}, {system}"), {"text": "a", "system": "b", "lang": "en"}, "a, b"),
        (PromptTemplate("text"), {"messages": MESSAGES, "text": "a"}, "a"),
        (PromptTemplate(template="[{text}]"), "a", "[a]"),
        (PromptTemplate(template="{title}: {text} {text}"), {"title": "T", "text": "a"}, "T: a a"),
        (PromptTemplate("body", "{text}{body}"), {"body": "b", "text": "a"}, "bb"),
        (PromptTemplate(template="{text} {n} {list}"), {"text": "{n}", "n": 5, "list": ["é"]}, '{n} 5 ["é"]'),
        (PromptTemplate(template='{"q": "{text}"} { text }'), "a", '{"q": "a"} { text }'),
    ],
)
def test_input(template: PromptTemplate, value: Any, expected: Any) -> None:
    assert template.read(value).value == expected


@pytest.mark.parametrize(
    ("template", "value", "reason"),
    [
        (PromptTemplate(), {"txt": "a"}, "no 'text'; it has 'txt'"),
        (PromptTemplate(), {}, "it has nothing"),
        (PromptTemplate(), 5, "not 5"),
        (PromptTemplate(), None, "not None"),
        (PromptTemplate(), ["a"], "text or an object"),
        (PromptTemplate(template="{title}"), "a", "no 'title'"),
        (PromptTemplate(template="{title}"), {"title": None, "text": "a"}, "no 'title'; it has 'text'"),
        (PromptTemplate(), {"text": None}, "no 'text'; it has nothing"),
        (PromptTemplate(), {"messages": MESSAGES, "text": "a"}, "both 'messages' and 'text': leave one of them out"),
        (
            PromptTemplate(),
            {"text": "a", "lang": "en"},
            "'lang', which has no meaning here: name the text with --column",
        ),
        (PromptTemplate(), {"messages": MESSAGES, "source": 1}, "'source', which has no meaning here"),
        (PromptTemplate(), {"text": "a", "max_new_tokens": 2}, "'max_new_tokens', .* pass --max-new-tokens instead"),
        (PromptTemplate("text"), {"text": "a", "max_new_tokens": 2}, "the option 'max_new_tokens'"),
        (PromptTemplate(keeps_columns=True), {"text": "a", "seed": 2}, "the option 'seed'"),
        (PromptTemplate(), {"text": "a", "system": "b"}, "not trained with: put it at the start of the text"),
    ],
)
def test_rows_that_do_not_fit(template: PromptTemplate, value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        template.read(value)


@pytest.mark.parametrize(
    ("template", "known", "reason"),
    [
        (PromptTemplate(), ["txt"], "no column 'text': did you mean 'txt'"),
        (PromptTemplate("body"), ["id", "n"], "no column 'body': it has 'id', 'n'"),
        (PromptTemplate(template="{titel} {text}"), ["title", "text"], "did you mean 'title'"),
        (PromptTemplate("body", "{text}"), ["text"], "no column 'body'"),
        (PromptTemplate(template="no place"), None, "no place for the text"),
        (PromptTemplate(), ["id", "text", "lang"], "The file has 'lang', which has no meaning here"),
        (PromptTemplate("text"), ["text", "top_p"], "The file has the option 'top_p'"),
    ],
)
def test_columns_that_a_file_lacks(template: PromptTemplate, known: list[str] | None, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        template.check_columns(known)


@pytest.mark.parametrize(
    ("template", "known", "needed"),
    [
        (PromptTemplate(), ["text"], ["text"]),
        (PromptTemplate("b", "{text} {c}"), ["b", "c"], ["b", "c"]),
        (PromptTemplate("text"), ["id", "text", "lang"], ["text"]),
        (PromptTemplate(keeps_columns=True), ["id", "text", "lang"], ["text"]),
    ],
)
def test_every_needed_column_has_to_be_there(template: PromptTemplate, known: list[str], needed: list[str]) -> None:
    template.check_columns(known)
    template.check_columns(None)  # of a file without columns
    for column in needed:
        with pytest.raises(OptionError, match=f"no column '{column}'"):
            template.check_columns([name for name in known if name != column])
