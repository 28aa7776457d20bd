"""`polylm chat`: put model, conversation and terminal together."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.app.generation_flags import takes_generation_options
from modelscope_polylm.app.model_flags import BackendFlag, DeviceFlag, DtypeFlag, ModelFlag, RevisionFlag
from modelscope_polylm.app.model_loading import load_model
from modelscope_polylm.app.terminal import console, is_terminal, printable

if TYPE_CHECKING:
    from modelscope_polylm.app.chat.conversation import Conversation


@takes_generation_options
def chat(
    *,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Keep what is typed for the next chat's arrow keys.")
    ] = True,
    options: dict[str, Any],
) -> None:
    """Talk with a model.

    /help lists the commands. From a pipe every line is a message, and answers come out alone.

    Answers come by greedy search, or by sampling where the release samples, because beam search has nothing to show
    before its end; --num-beams 4 brings it back. An answer may take a quarter of the context (--max-new-tokens).
    """
    from modelscope_polylm.app.chat.conversation import Conversation
    from modelscope_polylm.app.chat.loop import run_chat
    from modelscope_polylm.app.chat.prompt import line_reader, message_reader

    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        conversation = Conversation(load_model(model, revision, device, dtype, backend), options)
        run_chat(conversation, line_reader(), lambda text: None, interactive=False)
        return
    read = message_reader(history)
    conversation = Conversation(load_model(model, revision, device, dtype, backend), options)
    _note(_greeting(model, conversation))
    run_chat(conversation, read, _note, interactive=True)


def _note(text: str) -> None:
    console().print(printable(text), style="dim")


def _greeting(model: str, conversation: Conversation) -> str:
    lines = [f"{model} on {conversation.generator.backend.device}. /help lists the commands, Ctrl-D ends the chat."]
    if not conversation.knows_turns:
        name = conversation.generator.snapshot.prompt_format.name
        lines.append(f"Its prompt format, {name!r}, has no conversations: every message is answered on its own.")
    if conversation.options.num_beams > 1:
        lines.append("Beam search shows an answer when it is complete.")
    return "\n".join(lines)
