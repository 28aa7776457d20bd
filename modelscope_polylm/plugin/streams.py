"""Streams of pipeline outputs: each item is the whole output so far, which is ModelScope's convention."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.plugin.inputs import Prompt
from modelscope_polylm.plugin.text_generator import Reply, TextGenerator

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
