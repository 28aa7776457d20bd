"""One call of transformers' `generate()`: arguments in, answers out, errors as this package's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteriaList

from modelscope_polylm.backends.base import Completion, Request
from modelscope_polylm.backends.transformers.arguments import generate_arguments, wants_scores
from modelscope_polylm.backends.transformers.hooks import RequestStoppingCriteria, TokenStreamer, beam_completions
from modelscope_polylm.errors import DeviceError, OptionError, PolyLMError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

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
