"""The chat of the web app: conversations in, what the page shows out, and the tab that shows it."""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.conversation import Conversation, TurnStats
from modelscope_polylm.text.prompts import ASSISTANT, USER, Message
from modelscope_polylm.web.answers import Answers, explain
from modelscope_polylm.web.facts import NATIVE_NAMES, examples, follows_instructions
from modelscope_polylm.web.options import components, read_values, starting_values
from modelscope_polylm.web.style import show_problem, status_line

SEND, STOP = "Send", "Stop"
WAITING = "waiting for the answer"


@dataclass
class StopSign:
    """Ends the answer that is being written, as soon as it is raised."""

    raised: bool = False


@dataclass(frozen=True)
class ChatView:
    """What the page shows of a conversation.

    Attributes:
        messages: user and assistant in turn; a last answer may still grow, or be empty.
        busy: whether more is to come.
        status: one line about the answer.
        draft: the text in the message box; None leaves it as it is.
        problem: why there is no answer.
    """

    messages: list[Message]
    busy: bool = False
    status: str = ""
    draft: str | None = None
    problem: str | None = None


class Chat:
    """Continues conversations with one model. It keeps none of them."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

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
            yield ChatView(list(messages), status="Write a message first.")
            return
        yield ChatView(_turn(messages, text), busy=True, status=WAITING, draft="")
        try:
            yield from self._answer(messages, text, values, stop_sign)
        except Exception as error:
            yield ChatView(list(messages), draft=text, problem=explain(error))

    def retry(self, messages: Sequence[Message], values: Sequence[Any], stop_sign: StopSign) -> Iterator[ChatView]:
        """Answer the last message anew; the old answer stays if that fails."""
        if not messages:
            yield ChatView([], status="There is nothing to answer again.")
            return
        earlier, text = messages[:-2], messages[-2]["content"]
        yield ChatView(_turn(earlier, text), busy=True, status=WAITING)
        try:
            yield from self._answer(earlier, text, values, stop_sign)
        except Exception as error:
            yield ChatView(list(messages), problem=explain(error))

    def undo(self, messages: Sequence[Message]) -> ChatView:
        """Take the last message and its answer back; the message returns to the message box."""
        if not messages:
            return ChatView([], status="There is nothing to take back.")
        conversation = Conversation(self._answers.generator, messages=messages)
        draft = conversation.undo()
        return ChatView(conversation.messages, draft=draft)

    def _answer(
        self, earlier: Sequence[Message], text: str, values: Sequence[Any], stop_sign: StopSign
    ) -> Iterator[ChatView]:
        start, stop_sign.raised = time.perf_counter(), False
        settings = {**read_values(values), "num_return_sequences": 1}
        conversation = Conversation(self._answers.generator, settings, earlier, self._answers.stream)
        answer = ""
        with contextlib.closing(conversation.ask(text)) as pieces:
            for piece in pieces:
                answer, seconds = answer + piece, time.perf_counter() - start
                if stop_sign.raised:
                    yield ChatView(_turn(earlier, text, answer), status=f"Stopped after {seconds:.2f} s")
                    return
                status = f"{seconds:.1f} s" if answer else f"{WAITING}, {seconds:.1f} s"
                yield ChatView(_turn(earlier, text, answer), busy=True, status=status)
        yield ChatView(conversation.messages, status=_summary(conversation.stats))


def _summary(stats: TurnStats | None) -> str:
    if stats is None:
        return ""
    context = stats.used + stats.left
    took = f"{stats.tokens} tokens in {stats.seconds:.2f} s"
    return f"{took} · {stats.used:,} of {context:,} tokens of the context used"


def _turn(earlier: Sequence[Message], text: str, answer: str = "") -> list[Message]:
    return [*earlier, Message(role=USER, content=text), Message(role=ASSISTANT, content=answer)]


def add_chat_tab(answers: Answers) -> None:
    """Build the tab in the caller's layout.

    Args:
        answers: answers with the model.
    """
    import gradio

    chat = Chat(answers)
    conversation, stop_sign = gradio.State([]), gradio.State(StopSign())
    chatbot, message = _chatbot(), _message_box()
    status = gradio.HTML(status_line(""), elem_id="status", apply_default_css=False)
    with gradio.Row(elem_id="tools"):
        tools = [gradio.Button(name, size="sm", min_width=80) for name in ("Retry", "Undo", "Clear")]
    _add_examples(answers, message)
    with gradio.Accordion("Options", open=False, elem_id="options"):
        options = components(starting_values(answers.generator))

    def on_send(text: str, messages: list[Message], sign: StopSign, *values: Any) -> Iterator[list[Any]]:
        yield from map(_updates, chat.send(text, messages, values, sign))

    def on_retry(messages: list[Message], sign: StopSign, *values: Any) -> Iterator[list[Any]]:
        yield from map(_updates, chat.retry(messages, values, sign))

    def on_stop(sign: StopSign) -> None:
        sign.raised = True

    shown = [chatbot, message, conversation, status, *tools]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "once"}
    retry, undo, clear = tools
    message.submit(on_send, [message, conversation, stop_sign, *options], shown, **quiet)
    retry.click(on_retry, [conversation, stop_sign, *options], shown, **quiet)
    undo.click(lambda messages: _updates(chat.undo(messages)), conversation, shown, queue=False, **quiet)
    clear.click(lambda: _updates(ChatView([], draft="")), None, shown, queue=False, **quiet)
    # the answer itself ends when it sees the sign, so that nothing of it can come after the end
    message.stop(on_stop, stop_sign, None, queue=False, **quiet)


def _message_box() -> Any:
    import gradio

    return gradio.Textbox(
        placeholder="Write a message",
        show_label=False,
        lines=1,
        max_lines=8,
        submit_btn=SEND,
        elem_id="message",
        container=False,
        label="Message",
    )


def _chatbot() -> Any:
    import gradio

    return gradio.Chatbot(
        show_label=False,
        label="Conversation",
        elem_id="chat",
        height="55vh",
        min_height=280,
        layout="bubble",
        render_markdown=False,
        buttons=[],
        feedback_options=None,
        allow_file_downloads=False,
        latex_delimiters=[],
        placeholder="Nothing leaves the machine that runs this page.",
    )


def _add_examples(answers: Answers, message: Any) -> None:
    import gradio

    samples = examples(follows_instructions(answers.generator))
    shelf = gradio.Dataset(
        components=[gradio.Textbox(visible=False, render=False)],
        samples=[[text] for text in samples.values()],
        sample_labels=[NATIVE_NAMES[code] for code in samples],
        samples_per_page=len(samples),
        label="Examples",
        elem_id="examples",
    )
    shelf.click(lambda sample: sample[0], shelf, message, queue=False, show_progress="hidden", api_visibility="private")


def _updates(view: ChatView) -> list[Any]:
    """A view as values of chatbot, message box, conversation, status and the three tools."""
    import gradio

    if view.problem:
        show_problem(view.problem)
    # gradio reads HTML in messages even where it renders no Markdown
    bubbles = [{**message, "content": html.escape(message["content"], quote=False)} for message in view.messages]
    if bubbles and not bubbles[-1]["content"]:
        bubbles[-1]["content"] = "…" if view.busy else "(no answer)"
    box: dict[str, Any] = {"submit_btn": not view.busy and SEND, "stop_btn": view.busy and STOP}
    if view.draft is not None:
        box["value"] = view.draft
    tools = [gradio.update(interactive=not view.busy)] * 3
    return [bubbles, gradio.update(**box), view.messages, status_line(view.status), *tools]
