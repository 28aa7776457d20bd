"""One call of transformers' `generate()`: arguments in, tokens and answers out, errors as this package's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from modelscope_polylm.backends.base import Completion, Request
from modelscope_polylm.backends.transformers.arguments import generate_arguments, wants_scores
from modelscope_polylm.errors import DeviceError, OptionError, PolyLMError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import TokenCollector
from modelscope_polylm.text.tokenizer import PolyLMTokenizer


class RequestStoppingCriteria(StoppingCriteria):  # type: ignore[misc]
    """Ends rows at their own limit, at a stop string, or when the call is cancelled.

    It keeps no state: beam search and speculative decoding also ask about tokens that they do not take.

    Args:
        requests: the batch, padded on the left to one length, with equal options.
        tokenizer: reads the text for stop strings.
        cancelled: set to end all rows after the current step.
    """

    def __init__(self, requests: Sequence[Request], tokenizer: PolyLMTokenizer, cancelled: threading.Event) -> None:
        self._requests, self._tokenizer, self._cancelled = requests, tokenizer, cancelled
        self._stop_texts = requests[0].options.stop_texts
        self._start = max(len(request.prompt) for request in requests)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        # input_ids: [prompts * rows, length] -> [prompts * rows] bool
        rows = input_ids.shape[0] // len(self._requests)
        length = input_ids.shape[1] - self._start
        at_end = [self._cancelled.is_set() or length >= request.max_new_tokens for request in self._requests]
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
        requests: the batch, with equal options.
        tokenizer: reads the text for stop strings.
        report: gets the index of a request and its new tokens.
        follower: a streamer of the caller that gets the same tokens.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        tokenizer: PolyLMTokenizer,
        report: Callable[[int, list[int]], None],
        follower: Any = None,
    ) -> None:
        self._collectors = [TokenCollector(request, tokenizer) for request in requests]
        self._rows = requests[0].rows_per_prompt
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
        self._collect(value.reshape(self._rows * len(self._collectors), -1))

    def end(self) -> None:
        """Nothing is held back."""
        if self._follower is not None:
            self._follower.end()

    def completions(self, sequences: Tensor) -> list[list[Completion]]:
        """The answers of each request, without scores; `sequences` [rows, length] is what `generate()` returned."""
        # A search of the caller's own may not stream.
        self._collect(sequences[:, max(self._length, self._start) :])
        for collector in self._collectors:
            for row in range(self._rows):
                if collector.is_open(row):  # it was stopped from outside
                    collector.end(row, "stop")
        return [collector.completions() for collector in self._collectors]

    def _collect(self, tokens: Tensor) -> None:
        # tokens: [rows, steps]
        self._length += tokens.shape[1]
        for step in tokens.t().tolist():
            for index, collector in enumerate(self._collectors):
                taken = [
                    token
                    for row, token in enumerate(step[index * self._rows : (index + 1) * self._rows])
                    if collector.is_open(row) and collector.take(row, token) and row == 0
                ]
                if taken:
                    self._report(index, taken)


def beam_completions(output: Any, requests: Sequence[Request]) -> list[list[Completion]]:
    """The answers of each request from what beam search returned, with scores where they were asked for."""
    # output.sequences: [prompts * answers, length]; output.beam_indices: [same, new tokens], -1 after the end
    lengths = (output.beam_indices >= 0).sum(1).tolist()
    scores = [None] * len(lengths) if output.sequences_scores is None else output.sequences_scores.tolist()
    start, group = max(len(request.prompt) for request in requests), requests[0].options.num_return_sequences
    rows = output.sequences[:, start:].tolist()
    completions = [
        _beam_completion(rows[row][: lengths[row]], scores[row], requests[row // group]) for row in range(len(rows))
    ]
    return [completions[first : first + group] for first in range(0, len(completions), group)]


def _beam_completion(ids: list[int], score: float | None, request: Request) -> Completion:
    if ids and ids[-1] in request.options.end_tokens:
        return Completion(ids[:-1], score, None, "eos", ids[-1])
    return Completion(ids, score, None, "length" if len(ids) >= request.max_new_tokens else "stop")


Report = Callable[[int, list[int]], None]
"""Takes the index of a request and the new tokens of its first answer."""

# torch's generators belong to the process: one sampled generation at a time, whatever the model.
_RANDOM_NUMBERS = threading.Lock()


class GenerateCall:
    """Calls `generate()` of one model.

    Args:
        model: a GPT2LMHeadModel.
        tokenizer: reads the text for stop strings; ids that it does not have are never generated.
        device: where token ids have to be.
    """

    def __init__(self, model: Any, tokenizer: PolyLMTokenizer, device: torch.device) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._vocabulary = min(tokenizer.vocab_size, model.config.vocab_size)

    def __call__(
        self, requests: Sequence[Request], cancelled: threading.Event, report: Report
    ) -> list[list[Completion]]:
        """The answers to one batch of requests with equal options, best first.

        Args:
            requests: the batch.
            cancelled: set to end early.
            report: gets the new tokens of each request's first answer, step by step; none of beam search.

        Raises:
            OptionError: options that transformers refuses.
            DeviceError: the batch does not fit into the device's memory.
        """
        options = requests[0].options
        with _random_numbers(options), _errors_for_people(self._device):
            found = self._generate(requests, cancelled, report)
            if not wants_scores(options):
                return found
            return [self._scored(request, group) for request, group in zip(requests, found, strict=True)]

    def _generate(
        self, requests: Sequence[Request], cancelled: threading.Event, report: Report
    ) -> list[list[Completion]]:
        options, size = requests[0].options, self._model.config.vocab_size
        arguments = generate_arguments(requests, options, self._vocabulary, size, self._device)
        ends = RequestStoppingCriteria(requests, self._tokenizer, cancelled)
        arguments["stopping_criteria"] = StoppingCriteriaList([ends, *arguments.get("stopping_criteria", ())])
        if options.num_beams > 1:
            return beam_completions(self._model.generate(**arguments), requests)
        streamer = TokenStreamer(requests, self._tokenizer, report, follower=arguments.get("streamer"))
        arguments["streamer"] = streamer
        return streamer.completions(self._model.generate(**arguments).sequences)

    def _scored(self, request: Request, completions: list[Completion]) -> list[Completion]:
        options = request.options
        if options.num_beams > 1 and not options.output_logprobs:
            return completions
        for completion in completions:
            logprobs = self.logprobs(request.prompt, completion.ids)
            completion.logprobs = logprobs if options.output_logprobs else None
            completion.score = completion.score if options.num_beams > 1 else sum(logprobs)
        return sorted(completions, key=lambda completion: -(completion.score or 0.0))

    @torch.no_grad()
    def logprobs(self, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Natural log-probability of each token of an answer, by one more pass of the model."""
        # What generate() would keep for this is [steps, rows, vocabulary].
        if not ids:
            return []
        tokens = torch.tensor([[*prompt, *ids]], device=self._device)
        logits = self._model(tokens[:, :-1], logits_to_keep=len(ids), use_cache=False).logits[0]
        logits = logits[:, : self._vocabulary].float()
        chosen = logits.gather(1, tokens[0, len(prompt) :, None].to(logits.device))[:, 0]
        values: list[float] = (chosen - logits.logsumexp(-1)).tolist()
        return values


@contextlib.contextmanager
def _random_numbers(options: GenerationOptions) -> Iterator[None]:
    if not options.do_sample:
        yield
        return
    with _RANDOM_NUMBERS:
        if options.seed is None:
            yield
            return
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(options.seed)
            yield


@contextlib.contextmanager
def _errors_for_people(device: torch.device) -> Iterator[None]:
    try:
        yield
    except PolyLMError:
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"The batch does not fit into the memory of {device}: use fewer or shorter prompts."
        ) from error
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise OptionError(f"transformers cannot generate with these options: {error}") from error
