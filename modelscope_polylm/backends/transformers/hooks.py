"""What happens at every step of transformers' `generate()`: tokens come out, and answers are ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from modelscope_polylm.backends.base import Answer, Update
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import TokenCollector, stop_test_factory
from modelscope_polylm.generation.state import Request
from modelscope_polylm.text.tokenizer import PolyLMTokenizer


class AnswerEnds(StoppingCriteria):  # type: ignore[misc]
    """Ends rows at their own limit, at a stop string, or when the call is cancelled.

    It keeps no state: beam search and speculative decoding also ask about tokens that they do not take.

    Args:
        requests: the batch, padded on the left to one length.
        stop_texts: stop strings.
        tokenizer: reads the text for them.
        cancelled: set to end all rows after the current step.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        stop_texts: Sequence[str],
        tokenizer: PolyLMTokenizer,
        cancelled: threading.Event,
    ) -> None:
        self._requests, self._stop_texts, self._tokenizer, self._cancelled = requests, stop_texts, tokenizer, cancelled
        self._start = max(len(request.prompt) for request in requests)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        # input_ids: [prompts * rows, length] -> [prompts * rows] bool
        rows = input_ids.shape[0] // len(self._requests)
        length = input_ids.shape[1] - self._start
        at_end = [self._cancelled.is_set() or length >= request.limit for request in self._requests]
        ended = [at_end[row // rows] for row in range(len(input_ids))]
        if self._stop_texts:
            answers = input_ids[:, self._start :].tolist()
            ended = [ended[row] or self._has_stop_text(row // rows, answers[row]) for row in range(len(ended))]
        return torch.tensor(ended, device=input_ids.device)

    def _has_stop_text(self, index: int, ids: Sequence[int]) -> bool:
        prompt = self._requests[index].prompt
        start = len(self._tokenizer.decode(prompt, skip_special_tokens=True))
        text = self._tokenizer.decode([*prompt, *ids], skip_special_tokens=True)[start:]
        return any(stop in text for stop in self._stop_texts)


class TokenStreamer(BaseStreamer):
    """Collects the answers of greedy search and sampling, and reports the tokens of each request's first row.

    Args:
        requests: the batch.
        options: end tokens, stop strings, answers for each prompt.
        tokenizer: reads the text for stop strings.
        report: gets each update.
        follower: a streamer of the caller that gets the same tokens.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        tokenizer: PolyLMTokenizer,
        report: Callable[[Update], None],
        follower: Any = None,
    ) -> None:
        stop_tests = stop_test_factory(tokenizer, options.stop_texts)
        self._collector = TokenCollector(requests, options.num_return_sequences, options, stop_tests)
        self._rows = len(requests) * options.num_return_sequences
        self._start = max(len(request.prompt) for request in requests)
        self._length = 0
        self._report, self._follower = report, follower

    def put(self, value: Tensor) -> None:
        """Take the prompts, [rows, length], then the new tokens of a step, [rows], or several of a single row."""
        if self._follower is not None:
            self._follower.put(value)
        if self._length == 0:
            self._length = self._start
            return
        self._collect(value.reshape(self._rows, -1))

    def end(self) -> None:
        """Nothing is held back."""
        if self._follower is not None:
            self._follower.end()

    def answers(self, sequences: Tensor) -> list[list[Answer]]:
        """The answers of each request, without scores; `sequences` [rows, length] is what `generate()` returned."""
        # A search of the caller's own may not stream.
        self._collect(sequences[:, max(self._length, self._start) :])
        return self._collector.unscored()

    def _collect(self, tokens: Tensor) -> None:
        # tokens: [rows, steps]
        self._length += tokens.shape[1]
        for step in tokens.cpu().T:
            update = self._collector.collect(step)
            if any(update):
                self._report(update)


def beam_answers(output: Any, requests: Sequence[Request], options: GenerationOptions) -> list[list[Answer]]:
    """The answers of each request from what beam search returned, with scores where they were asked for."""
    # output.sequences: [prompts * answers, length]; output.beam_indices: [same, new tokens], -1 behind the end
    lengths = (output.beam_indices >= 0).sum(1).tolist()
    scores = [None] * len(lengths) if output.sequences_scores is None else output.sequences_scores.tolist()
    start, group = max(len(request.prompt) for request in requests), options.num_return_sequences
    rows = output.sequences[:, start:].tolist()
    answers = [
        _beam_answer(rows[row][: lengths[row]], scores[row], requests[row // group], options)
        for row in range(len(rows))
    ]
    return [answers[first : first + group] for first in range(0, len(answers), group)]


def _beam_answer(ids: list[int], score: float | None, request: Request, options: GenerationOptions) -> Answer:
    if ids and ids[-1] in options.end_tokens:
        return Answer(ids[:-1], score, None, "eos", ids[-1])
    return Answer(ids, score, None, "length" if len(ids) >= request.limit else "stop")
