"""One call of transformers' `generate()`: arguments in, answers out, errors as this package's own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from transformers import StoppingCriteriaList

from modelscope_polylm.backends.base import Answer, Update
from modelscope_polylm.backends.transformers.arguments import generate_arguments, wants_scores
from modelscope_polylm.backends.transformers.hooks import AnswerEnds, TokenStreamer, beam_answers
from modelscope_polylm.errors import DeviceError, OptionError, PolyLMError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Request
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

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
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        cancelled: threading.Event,
        report: Callable[[Update], None],
    ) -> list[list[Answer]]:
        """The answers to one batch, best first.

        Args:
            requests: the batch.
            options: checked options.
            cancelled: set to end early.
            report: gets the new tokens of each request's first answer, step by step; of beam search at the end.

        Raises:
            OptionError: options that transformers refuses.
            DeviceError: the batch does not fit into the device's memory.
        """
        with _random_numbers(options), _errors_for_people(self._device):
            answers = self._generate(requests, options, cancelled, report)
            if not wants_scores(options):
                return answers
            return [self._scored(request, found, options) for request, found in zip(requests, answers, strict=True)]

    def _generate(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        cancelled: threading.Event,
        report: Callable[[Update], None],
    ) -> list[list[Answer]]:
        size = self._model.config.vocab_size
        arguments = generate_arguments(requests, options, self._vocabulary, size, self._device)
        ends = AnswerEnds(requests, options.stop_texts, self._tokenizer, cancelled)
        arguments["stopping_criteria"] = StoppingCriteriaList([ends, *arguments.get("stopping_criteria", ())])
        if options.num_beams == 1:
            follower = arguments.get("streamer")
            streamer = TokenStreamer(requests, options, self._tokenizer, report, follower)
            arguments["streamer"] = streamer
            return streamer.answers(self._model.generate(**arguments).sequences)
        answers = beam_answers(self._model.generate(**arguments), requests, options)
        report([best[0].ids for best in answers])
        return answers

    def _scored(self, request: Request, answers: list[Answer], options: GenerationOptions) -> list[Answer]:
        if options.num_beams > 1 and not options.output_logprobs:
            return answers
        for answer in answers:
            logprobs = self.logprobs(request.prompt, answer.ids)
            answer.logprobs = logprobs if options.output_logprobs else None
            answer.score = answer.score if options.num_beams > 1 else sum(logprobs)
        return sorted(answers, key=lambda answer: -(answer.score or 0.0))

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


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(
    work: Callable[[Callable[[Item], None]], Result], cancel: Callable[[], None]
) -> Generator[Item, None, Result]:
    """Yield what `work` reports, return what it returns, raise what it raises.

    Args:
        work: called in a thread, with the function that it reports items to; it never waits for the consumer.
        cancel: called when the consumer goes away; it makes `work` return soon, which is waited for.
    """
    items: queue.SimpleQueue[Item | _Outcome[Result]] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: items.put(_Outcome.of(work, items.put)), name="polylm", daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _Outcome):
            yield item
        return item.result()
    finally:
        cancel()
        thread.join()


class _Outcome(Generic[Result]):
    """What a function returned or raised."""

    def __init__(self, result: list[Result], error: BaseException | None) -> None:
        self._result, self._error = result, error

    @classmethod
    def of(cls, work: Callable[[Callable[[Item], None]], Result], report: Callable[[Item], None]) -> _Outcome[Result]:
        try:
            return cls([work(report)], None)
        except BaseException as error:
            return cls([], error)

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._result[0]
