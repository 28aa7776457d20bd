"""What ModelScope's pipelines hand out: the dict of a result, and streams of such dicts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generator import GenerationResult, TextDelta, TextGenerator
from modelscope_polylm.inputs import Prompt


def text_output(
    prompt: Prompt, result: GenerationResult, options: GenerationOptions, return_full_text: bool | None = None
) -> dict[str, Any]:
    """The output of text-generation.

    Args:
        prompt: what was asked.
        result: its answers.
        options: say what to report next to the text.
        return_full_text: whether 'text' begins with the prompt; None: for a plain text yes, for a conversation no.

    Returns:
        'text'; for a conversation also 'message'; for several answers 'texts' and 'scores', best first.
    """
    whole = prompt.messages is None if return_full_text is None else return_full_text
    texts = [result.prompt_text + text if whole else text for text in result.texts]
    output: dict[str, Any] = {"text": texts[0]}
    if prompt.messages is not None:
        output["message"] = assistant_message(result)
    return {**output, **_details(result, options, texts)}


def chat_output(prompt: Prompt, result: GenerationResult, options: GenerationOptions) -> dict[str, Any]:
    """The output of chat: 'message', its text as 'response', and the conversation with it as 'history'."""
    message = assistant_message(result)
    history = [*(prompt.messages or []), message]
    output = {"message": message, "response": message["content"], "history": history}
    return {**output, **_details(result, options, result.texts)}


def assistant_message(result: GenerationResult) -> dict[str, str]:
    """The best answer as a message."""
    return {"role": "assistant", "content": result.texts[0]}


def _details(result: GenerationResult, options: GenerationOptions, texts: list[str]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if not result.completions:
        return details
    if options.num_return_sequences > 1:
        details["texts"] = texts
    if options.num_return_sequences > 1 or options.output_scores:
        details["scores"] = [completion.score for completion in result.completions]
    if options.output_logprobs:
        details["logprobs"] = [completion.logprobs for completion in result.completions]
    return details


Output = dict[str, Any]
Show = Callable[[Prompt, GenerationResult], Output]
"""Makes the output for a prompt and its result."""


def stream_outputs(
    generator: TextGenerator,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    show: Show,
    at_once: int | None = None,
) -> Generator[list[Output | None], None, None]:
    """Answer prompts as the tokens come; each item holds whole outputs, which is ModelScope's convention.

    Yields:
        For every prompt its output so far, None where there is none yet. Items that bring nothing new are left out.

    Raises:
        InputError, OptionError: what the backend refuses, before anything runs.
    """
    return _whole_outputs(generator, prompts, show, generator.stream(prompts, options, at_once))


def _whole_outputs(
    generator: TextGenerator, prompts: Sequence[Prompt], show: Show, deltas: Generator[TextDelta, None, None]
) -> Generator[list[Output | None], None, None]:
    outputs: list[Output | None] = [None] * len(prompts)
    texts = [""] * len(prompts)
    with contextlib.closing(deltas):
        for delta in deltas:
            prompt, texts[delta.prompt] = prompts[delta.prompt], texts[delta.prompt] + delta.text
            partial = GenerationResult(generator.prompt_text(prompt), [texts[delta.prompt]], ())
            output = show(prompt, delta.result or partial)
            if output != outputs[delta.prompt]:
                outputs[delta.prompt] = output
                yield list(outputs)
