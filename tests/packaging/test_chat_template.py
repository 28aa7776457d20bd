"""The chat template of a package writes what this package itself writes as a prompt."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from modelscope_polylm.packaging.files import chat_template
from modelscope_polylm.text.prompts import FORMATS, Message, check_messages, render

CHAT = [name for name, format in FORMATS.items() if format.earlier_turn]
QUESTIONS = (
    "Hi",
    "  two\n\n\nlines \n",
    "{{ 7 * 7 }} {% raw %}",
    "\"quoted\" 'twice' \\n",
    "问题\t？",
    "{question} {answer}",
)


def apply(format: str, messages: list[Any], prompt: bool = True) -> str:
    texts, _ = render_jinja_template(
        [messages], chat_template=chat_template(FORMATS[format]), add_generation_prompt=prompt
    )
    return str(texts[0])


def conversation(*contents: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_one_question(format: str, question: str) -> None:
    messages = conversation(question)
    assert apply(format, messages) == render(check_messages(messages, format=FORMATS[format]), FORMATS[format])


@pytest.mark.parametrize("format", CHAT)
@pytest.mark.parametrize("turns", [3, 5])
def test_several_turns(format: str, turns: int) -> None:
    messages = conversation(*(f" turn\n\n{number} " for number in range(turns)))
    assert apply(format, messages) == render(messages, FORMATS[format])


def test_whole_conversation_for_training() -> None:
    text = apply("assistant", conversation("a", "b"), prompt=False)
    assert text == "<|user|>\na\n<|assistant|>\nb\n"
    assert apply("assistant", conversation("a"), prompt=False) == "<|user|>\na\n"


@pytest.mark.parametrize(
    ("format", "messages"),
    [
        ("assistant", [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]),
        ("assistant", [{"role": "assistant", "content": "a"}]),
        ("multialpaca", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        ("base", conversation("a", "b", "c")),
        ("ecomm", conversation("a", "b", "c")),
    ],
)
def test_conversations_without_a_format_are_refused(format: str, messages: list[Any]) -> None:
    with pytest.raises(Exception, match="PolyLM"):
        apply(format, messages)


@pytest.mark.parametrize("format", FORMATS)
def test_template_is_one_line_of_tags(format: str) -> None:
    assert "\n" not in chat_template(FORMATS[format])
