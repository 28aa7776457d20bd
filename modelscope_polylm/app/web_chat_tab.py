"""The chat tab of the web app: components, and which callback each of their events calls."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from modelscope_polylm.app.web_answers import Answers
from modelscope_polylm.app.web_chat import Chat, ChatView, StopSign
from modelscope_polylm.app.web_examples import NATIVE_NAMES, examples
from modelscope_polylm.app.web_facts import follows_instructions
from modelscope_polylm.app.web_options import components, starting_values
from modelscope_polylm.app.web_style import show_problem, status_line
from modelscope_polylm.text.messages import Message

SEND, STOP = "Send", "Stop"


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
