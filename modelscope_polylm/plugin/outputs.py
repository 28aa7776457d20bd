"""What ModelScope's pipelines hand out: the dict of a reply, and streams of such dicts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generator import Prompt, Reply, TextGenerator


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


Item = TypeVar("Item")
Output = dict[str, Any]
Show = Callable[[Prompt, Reply], Output]
"""Makes the output for a prompt and its reply."""


def batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one perhaps shorter."""
    while batch := list(islice(items, size)):
        yield batch


def stream_outputs(
    generator: TextGenerator, prompts: Sequence[Prompt], size: int, options: GenerationOptions, show: Show
) -> Generator[list[Output | None], None, None]:
    """Answer prompts in batches of `size`, one batch after the other.

    Yields:
        For every prompt its output so far, None where there is none yet. Items that bring nothing new are left out.

    Raises:
        InputError, OptionError: what the backend refuses, before anything runs.
    """
    parts = list(batches(iter(prompts), size))
    streams = [generator.stream(part, options) for part in parts]
    return _follow(parts, streams, show)


def _follow(
    parts: list[list[Prompt]], streams: list[Generator[list[Reply | None], None, list[Reply]]], show: Show
) -> Generator[list[Output | None], None, None]:
    outputs: list[Output | None] = [None] * sum(map(len, parts))
    first = 0
    for part, stream in zip(parts, streams, strict=True):
        for replies in _with_last(stream):
            known = [
                None if reply is None else show(prompt, reply) for prompt, reply in zip(part, replies, strict=True)
            ]
            if known != outputs[first : first + len(part)]:
                outputs[first : first + len(part)] = known
                yield list(outputs)
        first += len(part)


def _with_last(stream: Generator[list[Reply | None], None, list[Reply]]) -> Iterator[Sequence[Reply | None]]:
    complete = yield from stream
    yield complete
