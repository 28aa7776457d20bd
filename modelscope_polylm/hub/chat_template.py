"""A release's prompt format as a chat template in Jinja, as transformers and most servers read it."""

from __future__ import annotations

import json

from modelscope_polylm.text.prompts import PromptFormat

QUESTION = "{question}"
ANSWER = "{answer}"


def chat_template(format: PromptFormat) -> str:
    """A template whose text is that of `text.prompts.render` when it is asked for a generation prompt.

    It is one line, since engines differ in how they treat line breaks between the tags. A conversation that the format
    cannot express is refused through `raise_exception`.
    """
    before, after = format.last_turn.split(QUESTION)
    header = next((marker for marker in format.role_markers[1:] if marker in after), None)
    end, opening = (after[: after.index(header)], after[after.index(header) :]) if header else (after, "")
    tail = (format.earlier_turn or "").partition(ANSWER)[2]
    user = [_text(before), f"{{{{ {_question(format)} }}}}", _text(end)]
    assistant = [_text(opening), "{{ message['content'] }}", _text(tail)]
    last = "{% if add_generation_prompt %}" + _text(opening) + "{% endif %}" if opening else ""
    return "".join(
        [
            "{% for message in messages %}",
            _checks(format),
            "{% if message['role'] == 'user' %}",
            *user,
            "{% else %}",
            *assistant,
            "{% endif %}{% endfor %}",
            last,
        ]
    )


def _checks(format: PromptFormat) -> str:
    """Tags that refuse other roles, roles out of turn, and several turns where there is no format for them."""
    roles = "{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}" + _refuse(
        "PolyLM knows the roles user and assistant only, in turn, the user first."
    )
    if format.earlier_turn is not None:
        return roles + "{% endif %}"
    turns = "{% elif loop.index0 %}" + _refuse(f"PolyLM's format {format.name!r} knows a single user message only.")
    return roles + turns + "{% endif %}"


def _refuse(reason: str) -> str:
    return f"{{{{ raise_exception({json.dumps(reason)}) }}}}"


def _question(format: PromptFormat) -> str:
    if not format.one_line_breaks:
        return "message['content']"
    return "message['content'].strip().split('\\n') | select | join('\\n')"


def _text(text: str) -> str:
    """A tag that writes a fixed text; a tag, since a line break outside of tags may be dropped."""
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""
