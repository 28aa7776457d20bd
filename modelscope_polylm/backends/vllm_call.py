"""One call of the vLLM backend: all its requests go to the engine together, and its answers are collected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from modelscope_polylm.backends.base import Answer
from modelscope_polylm.backends.vllm_engine import BackgroundEngine
from modelscope_polylm.backends.vllm_parameters import sampling_parameters, wants_logprobs
from modelscope_polylm.errors import DeviceError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import TokenCollector, stop_test_factory
from modelscope_polylm.generation.state import Request
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

Report = Callable[[int, list[int]], None]
"""Takes the number of a prompt and the new tokens of its first answer."""


class VLLMCall:
    """Greedy search or sampling for some prompts.

    Args:
        engine: what runs them.
        requests: the prompts.
        options: checked options.
        tokenizer: reads the text for stop strings.
        allowed_ids: the only ids that may be generated; None where these are all.
    """

    def __init__(
        self,
        engine: BackgroundEngine,
        requests: Sequence[Request],
        options: GenerationOptions,
        tokenizer: PolyLMTokenizer,
        allowed_ids: list[int] | None,
    ) -> None:
        self._engine, self._requests, self._options, self._allowed_ids = engine, requests, options, allowed_ids
        self._group = options.num_return_sequences
        stop_tests = stop_test_factory(tokenizer, options.stop_texts)
        self._collector = TokenCollector(requests, self._group, options, stop_tests)
        self._logprobs: list[list[float]] = [[] for _ in range(len(requests) * self._group)]

    async def answers(self, report: Report | None) -> list[list[Answer]]:
        """Run all requests; returns the answers of each, best first. Without `report` nothing is known before."""
        tasks = [asyncio.ensure_future(self._follow(index, report)) for index in range(len(self._requests))]
        try:
            await asyncio.gather(*tasks)
        finally:
            # where one has failed, or the caller has gone
            for task in tasks:
                task.cancel()
        return self._scored(self._collector.unscored())

    async def _follow(self, index: int, report: Report | None) -> None:
        """Take the tokens of a request until all its answers have ended, perhaps by a stop string that vLLM ignores."""
        fields = sampling_parameters(self._options, self._requests[index], index, self._allowed_ids)
        streaming = report is not None or bool(self._options.stop_texts)
        rows = range(index * self._group, (index + 1) * self._group)
        generated = self._engine.outputs(self._requests[index].prompt, fields, streaming)
        async with contextlib.aclosing(generated) as completions:
            async for completion in completions:
                new = self._take(rows[completion.index], completion)
                if report and new and completion.index == 0:
                    report(index, new)
                if not any(map(self._collector.is_open, rows)):
                    return
        raise DeviceError(
            "vLLM ended a request before its answer was complete: its log says why; load the model again."
        )

    def _take(self, row: int, completion: Any) -> list[int]:
        """Collect new tokens of an answer; returns those that belong to it."""
        taken: list[int] = []
        for position, token in enumerate(completion.token_ids):
            if not self._collector.is_open(row):
                break
            if self._collector.take(row, token):
                taken.append(token)
                if completion.logprobs is not None:
                    self._logprobs[row].append(completion.logprobs[position][token].logprob)
        return taken

    def _scored(self, answers: list[list[Answer]]) -> list[list[Answer]]:
        if not wants_logprobs(self._options):
            return answers
        every = [answer for group in answers for answer in group]
        for answer, logprobs in zip(every, self._logprobs, strict=True):
            answer.score = sum(logprobs)
            answer.logprobs = logprobs if self._options.output_logprobs else None
        return [sorted(group, key=lambda answer: -(answer.score or 0.0)) for group in answers]
