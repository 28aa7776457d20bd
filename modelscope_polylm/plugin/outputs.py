"""Replies -> the dicts that ModelScope's pipelines hand out."""

from __future__ import annotations

from typing import Any

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.plugin.inputs import Prompt
from modelscope_polylm.plugin.text_generator import Reply


def text_output(
    prompt: Prompt, reply: Reply, options: GenerationOptions, return_full_text: bool | None = None
) -> dict[str, Any]:
    """The output of text-generation.

    Args:
        prompt: what was asked.
        reply: its answers.
        options: say what to report beside the text.
        return_full_text: whether 'text' begins with the prompt; None: for a plain text yes, for a conversation no.

    Returns:
        'text'; for a conversation also 'message'; for several answers 'texts' and 'scores', best first.
    """
    whole = prompt.messages is None if return_full_text is None else return_full_text
    texts = [reply.prompt_text + text if whole else text for text in reply.texts]
    output: dict[str, Any] = {"text": texts[0]}
    if prompt.messages is not None:
        output["message"] = assistant_message(reply)
    return {**output, **_details(reply, options, texts)}


def chat_output(prompt: Prompt, reply: Reply, options: GenerationOptions) -> dict[str, Any]:
    """The output of chat: 'message', its text as 'response', and the conversation with it as 'history'."""
    message = assistant_message(reply)
    history = [*(prompt.messages or []), message]
    output = {"message": message, "response": message["content"], "history": history}
    return {**output, **_details(reply, options, reply.texts)}


def assistant_message(reply: Reply) -> dict[str, str]:
    """The best answer as a message."""
    return {"role": "assistant", "content": reply.texts[0]}


def _details(reply: Reply, options: GenerationOptions, texts: list[str]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if not reply.answers:
        return details
    if options.num_return_sequences > 1:
        details["texts"] = texts
    if options.num_return_sequences > 1 or options.output_scores:
        details["scores"] = [answer.score for answer in reply.answers]
    if options.output_logprobs:
        details["logprobs"] = [answer.logprobs for answer in reply.answers]
    return details
