"""Layouts of fine-tuning data: a row of a file becomes records, and what is left out or changed is named.

Which conversations are left out follows `reformat_datasets.py` of allenai/open-instruct, whose recipe of June 2023
the one of PolyLM-Assistant resembles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from modelscope_polylm.errors import InputError
from modelscope_polylm.text.prompts import ASSISTANT, USER

NO_INPUT = re.compile(r"\W*no\s?input\W*", re.IGNORECASE)
"""What self-instruct's prompts ask for where a task has no input; it should not have come into the data."""
QUOTES = (("「", "」"), ("『", "』"), ("“", "”"), ('"', '"'))
Row = Mapping[str, Any]


class TrainingMessage(TypedDict, total=False):
    """One message: 'role' is 'user' or 'assistant'; an answer whose 'weight' is 0 is context and not learnt."""

    role: str
    content: str
    weight: int


@dataclass
class Record:
    """One conversation or one plain text to learn.

    Attributes:
        messages: user and assistant in turn, the user first, the assistant last; empty for a plain text.
        text: a plain text; empty for a conversation.
        language: ISO 639-1 code, "" where the source does not tell.
        notes: what was changed or is remarkable, for the report.
    """

    messages: list[TrainingMessage] = field(default_factory=list)
    text: str = ""
    language: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LeftOut:
    """A row, or one answer of it, that makes no record, and why."""

    reason: str
    language: str = ""


class Layout(Protocol):
    """How the rows of a file are laid out.

    Attributes:
        required: fields that every row has.
    """

    @property
    def required(self) -> tuple[str, ...]: ...

    def records(self, row: Row, language: str) -> Iterator[Record | LeftOut]:
        """The records of a row that has the required fields, in `language` where the row does not tell another."""
        ...


@dataclass(frozen=True)
class Pairs:
    """A task and its answer, as Alpaca has them. Space around both is dropped.

    Attributes:
        question, context, answer: names of the fields; the context is joined to the question by an empty line.
        other: further fields by which the file is recognised.
        needs_context: False where rows may lack the field of the context.
        only_with_code: keep only rows with a fenced block of code in context or answer.
        context_prefixes: what a context may begin with by mistake.
        unquoted: take a question out of quotation marks that enclose all of it.
    """

    question: str = "instruction"
    context: str | None = "input"
    answer: str = "output"
    other: tuple[str, ...] = ()
    needs_context: bool = True
    only_with_code: bool = False
    context_prefixes: tuple[str, ...] = ()
    unquoted: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        context = (self.context,) if self.context and self.needs_context else ()
        return (self.question, *context, self.answer, *self.other)

    def records(self, row: Row, language: str) -> Iterator[Record | LeftOut]:
        language = _language(row, language)
        notes: list[str] = []
        question, answer = row[self.question], row[self.answer]
        context = self._context(row[self.context], notes) if self.context and self.context in row else ""
        for name, value in ((self.question, question), (self.context, context), (self.answer, answer)):
            if not isinstance(value, str):
                yield LeftOut(f"{name} is {kind_of(value)}, not text", language)
                return
        question = self._without_quotes(question.strip(), notes)
        if not question or not answer.strip():
            yield LeftOut("empty answer" if question else "empty question", language)
        elif self.only_with_code and max(context.count("```"), answer.count("```")) < 2:
            yield LeftOut("no fenced code", language)
        else:
            text = f"{question}\n\n{context}" if context else question
            messages: list[TrainingMessage] = [_message(USER, text), _message(ASSISTANT, answer.strip())]
            yield Record(messages, language=language, notes=notes)

    def _context(self, value: Any, notes: list[str]) -> Any:
        if value is None:
            notes.append(f"{self.context} is null, taken as empty")
            return ""
        if not isinstance(value, str):
            return value
        text = value.strip()
        if NO_INPUT.fullmatch(text):
            notes.append(f"{self.context} says that there is none, taken as empty")
            return ""
        for prefix in self.context_prefixes:
            if text.startswith(prefix):
                notes.append(f"prefix {prefix} of {self.context} removed")
                return text.removeprefix(prefix).lstrip()
        return text

    def _without_quotes(self, text: str, notes: list[str]) -> str:
        for opening, closing in QUOTES if self.unquoted else ():
            inner = text[1:-1]
            if text[:1] == opening and text[1:].endswith(closing) and opening not in inner and closing not in inner:
                notes.append("quotation marks around the question removed")
                return inner.strip()
        return text


@dataclass(frozen=True)
class Conversations:
    """A list of messages.

    Messages before the first question and a question without an answer are left out, messages of one role in a row are
    joined, and the record says so.

    Attributes:
        messages, role, content: names of the fields.
        roles: 'user' or 'assistant' for the names of the file.
        leading: roles whose text is put before the first question, as PolyLM has no system role.
        refused: roles with which a conversation is left out.
    """

    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str] = field(default_factory=lambda: {USER: USER, ASSISTANT: ASSISTANT})
    leading: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        return (self.messages,)

    def records(self, row: Row, language: str) -> Iterator[Record | LeftOut]:
        language = _language(row, language)
        try:
            messages, notes = self._alternating(self._read(row[self.messages]))
        except InputError as error:
            yield LeftOut(str(error), language)
            return
        yield Record(messages, language=language, notes=notes)

    def _read(self, messages: Any) -> list[TrainingMessage]:
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise InputError(f"{self.messages} is {kind_of(messages)}, not a list")
        read: list[TrainingMessage] = []
        leading: list[str] = []
        for message in messages:
            role, content = self._role_and_content(message)
            if role in self.leading:
                leading.append(content)
                continue
            known = _message(self.roles[role], content)
            if message.get("weight") is not None:
                known["weight"] = _weight(message["weight"])
            if leading and known["role"] == USER:
                known["content"] = "\n\n".join([*leading, content])
                leading.clear()
            read.append(known)
        return read

    def _role_and_content(self, message: Any) -> tuple[str, str]:
        if not isinstance(message, Mapping):
            raise InputError(f"a message is {kind_of(message)}, not an object")
        role, content = message.get(self.role), message.get(self.content)
        if role in self.refused:
            raise InputError(f"a message of {role!r}")
        if not isinstance(role, str) or role not in (*self.roles, *self.leading):
            raise InputError(f"unknown role {role!r:.40}")
        text = _text_parts(content)
        if not isinstance(text, str):
            raise InputError(f"a message's {self.content} is {kind_of(content)}, not text")
        if not text.strip():
            raise InputError("empty answer" if self.roles.get(role) == ASSISTANT else "empty question")
        return role, text

    def _alternating(self, messages: list[TrainingMessage]) -> tuple[list[TrainingMessage], list[str]]:
        notes: list[str] = []
        first = next((index for index, each in enumerate(messages) if each["role"] == USER), len(messages))
        if first:
            notes.append("answers before the first question left out")
        joined: list[TrainingMessage] = []
        for message in messages[first:]:
            if joined and joined[-1]["role"] == message["role"]:
                joined[-1] = _joined(joined[-1], message)
                notes.append("messages of one role in a row joined")
            else:
                joined.append(message)
        if joined and joined[-1]["role"] == USER:
            joined.pop()
            notes.append("last question without an answer left out")
        if not joined:
            raise InputError("no question with an answer")
        if all(message.get("weight") == 0 for message in joined if message["role"] == ASSISTANT):
            raise InputError("no answer to learn: every weight is 0")
        return joined, notes


@dataclass(frozen=True)
class Trees:
    """OpenAssistant's message trees: a record for each answer, with what led to it; only that answer is learnt."""

    required: tuple[str, ...] = ("prompt", "message_tree_id")

    def records(self, row: Row, language: str) -> Iterator[Record | LeftOut]:
        open_nodes: list[tuple[Any, list[TrainingMessage]]] = [(row["prompt"], [])]
        while open_nodes:
            node, path = open_nodes.pop()
            reason = self._problem(node, path)
            if reason:
                yield LeftOut(reason, _language(node, language) if isinstance(node, Mapping) else language)
                continue
            role = USER if node["role"] == "prompter" else ASSISTANT
            messages = [*path, _message(role, node["text"])]
            if role == ASSISTANT:
                context: list[TrainingMessage] = [_as_context(message) for message in path]
                yield Record([*context, messages[-1]], language=_language(node, language))
            replies = node.get("replies") or []
            open_nodes += [(reply, messages) for reply in reversed(replies)]

    def _problem(self, node: Any, path: list[TrainingMessage]) -> str | None:
        if not isinstance(node, Mapping):
            return f"a message is {kind_of(node)}, not an object"
        expected = "assistant" if len(path) % 2 else "prompter"
        if node.get("deleted"):
            return "deleted message, with its replies"
        if node.get("role") != expected:
            return f"role {node.get('role')!r:.40} where {expected!r} is expected, with its replies"
        text = node.get("text")
        if not isinstance(text, str) or not text.strip():
            return f"text is {kind_of(text) if not isinstance(text, str) else 'empty'}, with its replies"
        return None


@dataclass(frozen=True)
class Texts:
    """Plain texts, learnt from the first token to the last."""

    required: tuple[str, ...] = ("text",)

    def records(self, row: Row, language: str) -> Iterator[Record | LeftOut]:
        text, language = row["text"], _language(row, language)
        if not isinstance(text, str):
            yield LeftOut(f"text is {kind_of(text)}, not text", language)
        elif not text.strip():
            yield LeftOut("empty text", language)
        else:
            yield Record(text=text, language=language)


def _message(role: str, content: str) -> TrainingMessage:
    return {"role": role, "content": content}


def _as_context(message: TrainingMessage) -> TrainingMessage:
    return {**message, "weight": 0} if message["role"] == ASSISTANT else message


def _joined(first: TrainingMessage, second: TrainingMessage) -> TrainingMessage:
    joined = {**first, "content": f"{first['content']}\n{second['content']}"}
    if "weight" in first or "weight" in second:
        joined["weight"] = min(first.get("weight", 1), second.get("weight", 1))
    return joined  # type: ignore[return-value]


def _weight(value: Any) -> int:
    if isinstance(value, bool) or value not in (0, 1):
        raise InputError(f"a message's weight is {value!r:.40}, not 0 or 1")
    return int(value)


def _text_parts(content: Any) -> Any:
    """OpenAI's content may be a list of parts; a list of texts is one text."""
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    return content


def _language(row: Row, otherwise: str) -> str:
    named = row.get("language") or row.get("lang")
    return named if isinstance(named, str) and named else otherwise


def kind_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__
