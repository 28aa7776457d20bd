"""The chat of the web app: conversations in, what the page shows out, and the tab that shows it."""

from __future__ import annotations

import contextlib
import functools
import html
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.conversation import Conversation, TurnStats
from modelscope_polylm.text.languages import NATIVE_NAMES
from modelscope_polylm.text.prompts import ASSISTANT, USER, Message
from modelscope_polylm.web.answers import Answers, StopSign, explain, show_problem, status_line, waiting_line
from modelscope_polylm.web.model import components, examples, follows_instructions, read_values, starting_values
from modelscope_polylm.web.words import Words

STORAGE, NOT_SECRET = "polylm-chat", "polylm"
"""Where the browser keeps the conversation. gradio wants a key for it; a random one would not outlive the server."""


@dataclass(frozen=True)
class ChatView:
    """What the page shows of a conversation.

    Attributes:
        messages: user and assistant in turn; a last answer may still grow, or be empty.
        answer: the name of the answer that is being written, by which it is found again; empty if there is none.
        status: one line about the answer.
        draft: the text in the message box; None leaves it as it is.
        problem: why there is no answer.
    """

    messages: list[Message]
    answer: str = ""
    status: str = ""
    draft: str | None = None
    problem: str | None = None

    @property
    def saved(self) -> dict[str, Any]:
        """What the browser keeps of it."""
        return {"messages": self.messages, "answer": self.answer}

    @classmethod
    def restored(cls, saved: Any) -> ChatView:
        """The view of what a browser kept; empty where that is no conversation."""
        messages = saved.get("messages") if isinstance(saved, dict) else None
        if not isinstance(messages, list) or len(messages) % 2 or not all(map(_is_message, messages, _roles(messages))):
            return cls([])
        answer = saved.get("answer")
        return cls(messages, answer if isinstance(answer, str) and messages else "")


def _roles(messages: Sequence[Any]) -> list[str]:
    return [USER, ASSISTANT] * (len(messages) // 2)


def _is_message(value: Any, role: str) -> bool:
    return isinstance(value, dict) and value.get("role") == role and isinstance(value.get("content"), str)


class Chat:
    """Continues conversations with one model, for a page in one language. It keeps none of them."""

    def __init__(self, answers: Answers, words: Words) -> None:
        self._answers, self._words = answers, words

    def send(
        self, text: str, messages: Sequence[Message], values: Sequence[Any], stop_sign: StopSign
    ) -> Iterator[ChatView]:
        """Add a user's message and yield the conversation while the answer grows.

        Args:
            text: the message.
            messages: the conversation before it.
            values: the page's options, in the order of `options.shown_fields`.
            stop_sign: ends the answer when it is raised; what has come of it stays.
        """
        if not text.strip():
            yield ChatView(list(messages), status=self._words("Write a message first."))
            return
        name = uuid.uuid4().hex
        yield ChatView(_turn(messages, text), name, self._words("waiting for the answer"), draft="")
        try:
            yield from self._answer(messages, text, values, stop_sign, name)
        except Exception as error:
            yield ChatView(list(messages), draft=text, problem=explain(error, self._words))

    def retry(
        self, messages: Sequence[Message], values: Sequence[Any], stop_sign: StopSign, name: str = ""
    ) -> Iterator[ChatView]:
        """Answer the last message anew; the old answer stays if that fails.

        Args:
            messages, values, stop_sign: as for `send`.
            name: of the answer that is being written; where it is still there it is gone on with.
        """
        if not messages:
            yield ChatView([], status=self._words("There is nothing to answer again."))
            return
        earlier, text, name = messages[:-2], messages[-2]["content"], name or uuid.uuid4().hex
        yield ChatView(_turn(earlier, text), name, self._words("waiting for the answer"))
        try:
            yield from self._answer(earlier, text, values, stop_sign, name)
        except Exception as error:
            yield ChatView(list(messages), problem=explain(error, self._words))

    def undo(self, messages: Sequence[Message]) -> ChatView:
        """Take the last message and its answer back; the message returns to the message box."""
        if not messages:
            return ChatView([], status=self._words("There is nothing to take back."))
        conversation = Conversation(self._answers.generator, messages=messages)
        draft = conversation.undo()
        return ChatView(conversation.messages, draft=draft)

    def restore(self, saved: Any, values: Sequence[Any], stop_sign: StopSign) -> Iterator[ChatView]:
        """Show the conversation that the browser kept, and go on with an answer that was being written."""
        view = ChatView.restored(saved)
        if view.answer:
            yield from self.retry(view.messages, values, stop_sign, view.answer)
        else:
            yield view

    def _answer(
        self, earlier: Sequence[Message], text: str, values: Sequence[Any], stop_sign: StopSign, name: str
    ) -> Iterator[ChatView]:
        start, stop_sign.raised = time.perf_counter(), False
        settings = {**read_values(values), "num_return_sequences": 1}
        stream = functools.partial(self._answers.stream, name=name)
        conversation = Conversation(self._answers.generator, settings, earlier, stream)
        answer = ""
        with contextlib.closing(conversation.ask(text)) as pieces:
            for piece in pieces:
                answer, seconds = answer + piece, time.perf_counter() - start
                if stop_sign.raised:
                    self._answers.stop(name)
                    status = self._words("Stopped after {seconds} s", seconds=f"{seconds:.2f}")
                    yield ChatView(_turn(earlier, text, answer), status=status)
                    return
                status = self._words("{seconds} s", seconds=f"{seconds:.1f}")
                yield ChatView(_turn(earlier, text, answer), name, status if answer else self._waiting(name, status))
        yield ChatView(conversation.messages, status=self._summary(conversation.stats))

    def _waiting(self, name: str, status: str) -> str:
        place = waiting_line(self._answers, name, self._words)
        return f"{self._words('waiting for the answer')}, {place}{status}"

    def _summary(self, stats: TurnStats | None) -> str:
        if stats is None:
            return ""
        numbers = {"used": f"{stats.used:,}", "context": f"{stats.used + stats.left:,}"}
        return self._words(
            "{tokens} tokens in {seconds} s · {used} of {context} tokens of the context used",
            tokens=stats.tokens,
            seconds=f"{stats.seconds:.2f}",
            **numbers,
        )


def _turn(earlier: Sequence[Message], text: str, answer: str = "") -> list[Message]:
    return [*earlier, Message(role=USER, content=text), Message(role=ASSISTANT, content=answer)]


def add_chat_tab(answers: Answers, words: Words, page: Any) -> None:
    """Build the tab in the caller's layout.

    Args:
        answers: answers with the model.
        words: the page's language.
        page: the Blocks; they restore the conversation when they are loaded.
    """
    import gradio

    chat, sign = Chat(answers, words), gradio.State(StopSign())
    saved = gradio.BrowserState(ChatView([]).saved, storage_key=STORAGE, secret=NOT_SECRET)
    chatbot, message = _chatbot(words), _message_box(words)
    status = gradio.HTML(status_line(""), elem_id="status", apply_default_css=False)
    tools = _buttons(words, "tools", "Retry", "Undo", "Clear")
    savers = _buttons(words, "savers", "Save as Markdown", "Save as JSON")
    _add_examples(answers, words, message)
    with gradio.Accordion(words("Options"), open=False, elem_id="options"):
        options = components(starting_values(answers.generator), words)

    def show(view: ChatView) -> list[Any]:
        return _updates(view, words)

    def on_send(text: str, saved: Any, sign: StopSign, *values: Any) -> Iterator[list[Any]]:
        yield from map(show, chat.send(text, ChatView.restored(saved).messages, values, sign))

    def on_retry(saved: Any, sign: StopSign, *values: Any) -> Iterator[list[Any]]:
        yield from map(show, chat.retry(ChatView.restored(saved).messages, values, sign))

    def on_edit(edit: Any, saved: Any, sign: StopSign, *values: Any) -> Iterator[list[Any]]:
        earlier = ChatView.restored(saved).messages[: _index(edit)]
        yield from map(show, chat.send(str(edit.value), earlier, values, sign))

    on_edit.__annotations__["edit"] = gradio.EditData  # tells gradio what to hand over

    def on_load(saved: Any, sign: StopSign, *values: Any) -> Iterator[list[Any]]:
        yield from map(show, chat.restore(saved, values, sign))

    def on_stop(sign: StopSign) -> None:
        sign.raised = True

    shown = [chatbot, message, saved, status, *tools]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "once"}
    retry, undo, clear = tools
    message.submit(on_send, [message, saved, sign, *options], shown, **quiet)
    chatbot.edit(on_edit, [saved, sign, *options], shown, **quiet)
    retry.click(on_retry, [saved, sign, *options], shown, **quiet)
    page.load(on_load, [saved, sign, *options], shown, **quiet)
    undo.click(lambda saved: show(chat.undo(ChatView.restored(saved).messages)), saved, shown, queue=False, **quiet)
    clear.click(lambda: show(ChatView([], draft="")), None, shown, queue=False, **quiet)
    for button, kind in zip(savers, ("md", "json"), strict=True):
        button.click(None, saved, None, js=f'saved => save(saved.messages, "{kind}")', queue=False, **quiet)
    # the answer itself ends when it sees the sign, so that nothing of it can come after the end
    message.stop(on_stop, sign, None, queue=False, **quiet)


def _index(edit: Any) -> int:
    """The place of an edited message among all; that of a user's message is even."""
    place = edit.index[0] if isinstance(edit.index, (list, tuple)) else edit.index
    return int(place) // 2 * 2


def _buttons(words: Words, name: str, *labels: str) -> list[Any]:
    import gradio

    with gradio.Row(elem_id=name):
        return [gradio.Button(words(label), size="sm", min_width=80) for label in labels]


def _message_box(words: Words) -> Any:
    import gradio

    return gradio.Textbox(
        placeholder=words("Write a message"),
        show_label=False,
        lines=1,
        max_lines=8,
        submit_btn=words("Send"),
        elem_id="message",
        container=False,
        label=words("Message"),
    )


def _chatbot(words: Words) -> Any:
    import gradio

    kept = "Nothing leaves the machine that runs this page. Your browser keeps the chat until you clear it."
    return gradio.Chatbot(
        show_label=False,
        label=words("Conversation"),
        elem_id="chat",
        height="55vh",
        min_height=280,
        layout="bubble",
        render_markdown=False,
        buttons=["copy"],
        editable="user",
        feedback_options=None,
        allow_file_downloads=False,
        latex_delimiters=[],
        placeholder=words(kept),
    )


def _add_examples(answers: Answers, words: Words, message: Any) -> None:
    import gradio

    samples = examples(follows_instructions(answers.generator))
    shelf = gradio.Dataset(
        components=[gradio.Textbox(visible=False, render=False)],
        samples=[[text] for text in samples.values()],
        sample_labels=[NATIVE_NAMES[code] for code in samples],
        samples_per_page=len(samples),
        label=words("Examples"),
        elem_id="examples",
    )
    shelf.click(lambda sample: sample[0], shelf, message, queue=False, show_progress="hidden", api_visibility="private")


def _updates(view: ChatView, words: Words) -> list[Any]:
    """A view as values of chatbot, message box, what the browser keeps, status and the three tools."""
    import gradio

    if view.problem:
        show_problem(view.problem)
    # gradio reads HTML in messages even where it renders no Markdown
    bubbles = [{**message, "content": html.escape(message["content"], quote=False)} for message in view.messages]
    busy = bool(view.answer)
    if bubbles and not bubbles[-1]["content"]:
        bubbles[-1]["content"] = "…" if busy else words("(no answer)")
    box: dict[str, Any] = {"submit_btn": not busy and words("Send"), "stop_btn": busy and words("Stop")}
    if view.draft is not None:
        box["value"] = view.draft
    tools = [gradio.update(interactive=not busy)] * 3
    return [bubbles, gradio.update(**box), view.saved, status_line(view.status), *tools]
