"""Prompts in, texts out: one snapshot on one backend, without ModelScope; every door stands on it."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import OptionError, PolyLMError, nearest_name
from modelscope_polylm.generation.options import GenerationOptions, option_fields
from modelscope_polylm.inputs import InputReader, Prompt
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    import torch

    from modelscope_polylm.backends.base import Backend, Completion, DeltaStream
    from modelscope_polylm.generation.outputs import TokenScores
    from modelscope_polylm.snapshot import Snapshot


Item = tuple[Prompt, GenerationOptions] | PolyLMError
"""A prompt with its options, or what keeps it from being one."""

LOAD_OPTIONS = ("device", "dtype", "torch_dtype", "backend", "prompt_format", "release", "adapter")


@dataclass(frozen=True)
class GenerationResult:
    """The answers to one prompt.

    Attributes:
        prompt_text: the prompt as its tokens decode, which may differ from what was typed (normalization).
        texts: the answers without the prompt, best first.
        completions: ids, scores and log-probabilities of the answers.
    """

    prompt_text: str
    texts: list[str]
    completions: Sequence[Completion]


@dataclass(frozen=True)
class TextDelta:
    """What is new of the best answer to one prompt.

    Attributes:
        prompt: its index among those that were given together.
        text: new text; all texts of a prompt's deltas together are the answer. Where it is not known before the end
            which answer is the best one, everything comes with the last delta.
        result: the complete answers, on the last delta of a prompt; None before.
    """

    prompt: int
    text: str
    result: GenerationResult | None = None


class TextGenerator:
    """One snapshot on one backend.

    Attributes:
        snapshot: the model folder, its tokenizer, prompt format and default options.
        backend: what runs it.
        reader: reads inputs for it.
    """

    def __init__(self, snapshot: Snapshot, backend: Backend) -> None:
        self.snapshot = snapshot
        self.backend = backend
        self.reader = InputReader(snapshot.tokenizer, snapshot.prompt_format, backend.config.max_positions)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        backend: str = "native",
        prompt_format: str | None = None,
        release: str | None = None,
        adapter: str | Path | None = None,
        **backend_options: Any,
    ) -> TextGenerator:
        """Open a snapshot folder and put its weights on a device.

        Args:
            folder: a complete PolyLM snapshot.
            device: 'gpu', 'cuda', 'cuda:1', 'gpu:0' or 'cpu'; None takes a GPU if there is one.
            dtype: precision of the weights; None is bfloat16 on CUDA and float32 on the CPU.
            backend: 'native', 'transformers' or 'vllm', for which a snapshot is packaged if needed.
            prompt_format: how messages are written, where the snapshot's own is not meant.
            release: which release's defaults apply, where the folder does not tell.
            adapter: peft's folder of a low-rank adapter, which is merged into the weights.
            backend_options: options of the backend, such as the native one's `quantization` and `kv_cache_dtype`.

        Raises:
            SnapshotError: the folder is not a complete snapshot.
            DeviceError: the device does not exist.
            OptionError: an unknown backend, option or precision.
            DependencyError: vLLM is asked for and missing.
        """
        from modelscope_polylm.backends import create_backend
        from modelscope_polylm.backends.placement import choose_device, choose_dtype
        from modelscope_polylm.backends.vllm.options import check_quantization
        from modelscope_polylm.snapshot import open_snapshot

        _check_names(backend_options)
        chosen = choose_device(device)
        precision = choose_dtype(dtype, chosen)
        if backend == "vllm":
            check_quantization(backend_options.get("quantization"))
            folder, adapter = _packaged(folder, release, adapter), None
        snapshot = open_snapshot(folder, prompt_format=prompt_format, release=release, adapter=adapter)
        return cls(snapshot, create_backend(backend, snapshot, chosen, precision, **backend_options))

    def options(self, call: Mapping[str, Any]) -> GenerationOptions:
        """The options of a call over the defaults of the snapshot and its release.

        Warns of options that sampling alone reads, where none is asked for. Raises OptionError.
        """
        takes_all, defaults = self.backend.name == "transformers", self.snapshot.generation
        try:
            checked = GenerationOptions.from_layers(defaults, call, allow_extra=takes_all)
        except OptionError as error:
            if str(error) != _defaults_problem(defaults, takes_all):
                raise
            raise OptionError(f"{self.snapshot.folder}/generation_config.json: {error}") from error
        if names := checked.without_effect(call):
            verb = "has" if len(names) == 1 else "have"
            warnings.warn(f"{', '.join(names)} {verb} no effect without do_sample=True.", UserWarning, stacklevel=3)
        return checked

    def reply(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | Sequence[GenerationOptions],
        at_once: int | None = None,
    ) -> list[GenerationResult]:
        """Answer all prompts, and return when every answer is complete.

        Args:
            prompts: read and checked.
            options: for all prompts, or one for each.
            at_once: most prompts that run together; None leaves it to the backend.
        """
        found = self._submit(prompts, options, at_once, partial=False).completions()
        return [self.result(prompt, completions) for prompt, completions in zip(prompts, found, strict=True)]

    def stream(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | Sequence[GenerationOptions],
        at_once: int | None = None,
    ) -> Generator[TextDelta, None, None]:
        """Answer all prompts, as the tokens come; see `reply`. Closing the generator cancels what has not ended."""
        return self._deltas(prompts, self._submit(prompts, options, at_once, partial=True))

    def reply_each(
        self, prompts: Iterable[Item], at_once: int | None = None
    ) -> Iterator[GenerationResult | PolyLMError]:
        """Answer any number of prompts, in order; so many are kept in flight that the device has always work.

        A prompt that cannot be answered gives its error, and an error in place of a prompt is handed through; the
        others go on. An error that `prompts` raises is raised after the answers to the prompts before it.
        """
        joins = self.backend.joins_requests
        size = 1 if joins else at_once or 1
        window = at_once or self.backend.window if joins else self.backend.window
        waiting: deque[tuple[list[Item], DeltaStream | PolyLMError | None]] = deque()
        parts = _Parts(iter(prompts), size)
        while True:
            while len(waiting) < window and (part := parts.next()):
                waiting.append((part, self._submit_part(part, at_once)))
            if not waiting:
                break
            yield from self._results_or_errors(*waiting.popleft())
        if parts.error is not None:
            raise parts.error

    def log_likelihood(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], best: int = 0
    ) -> list[TokenScores]:
        """How probable continuations are, token by token; `sum(scores.logprobs)` is the log-likelihood of one.

        Texts that start alike, such as a question with several answers, share what is computed for their start.

        Args:
            contexts: token ids, at least one each; the end token stands for an empty context.
            continuations: for each context token ids; both together fit the model's context.
            best: how many of the most probable tokens are told for each position.

        Raises:
            InputError: an empty context, too many tokens, or an unknown id.
            OptionError: the backend does not score texts.
        """
        pairs = list(zip(contexts, continuations, strict=True))
        if not pairs:
            return []
        texts = [[*context, *continuation] for context, continuation in pairs]
        requests = self.backend.scoring_requests(texts, [len(context) for context, _ in pairs], best)
        found = [answers[0].scores for answers in self.backend.submit(requests, partial=False).completions()]
        return [scores for scores in found if scores is not None]

    def result(self, prompt: Prompt, completions: Sequence[Completion]) -> GenerationResult:
        """The answers to a prompt as texts."""
        head, decode = self.prompt_text(prompt), self.snapshot.tokenizer.decode
        texts = [decode([*prompt.ids, *each.ids], skip_special_tokens=True)[len(head) :] for each in completions]
        return GenerationResult(head, texts, completions)

    def _submit(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | Sequence[GenerationOptions],
        at_once: int | None,
        partial: bool,
    ) -> DeltaStream:
        requests = self.backend.requests([prompt.ids for prompt in prompts], options)
        return self.backend.submit(requests, partial, at_once)

    def _deltas(self, prompts: Sequence[Prompt], deltas: DeltaStream) -> Generator[TextDelta, None, None]:
        tokenizer = self.snapshot.tokenizer
        detokenizers = [IncrementalDetokenizer(tokenizer, prompt.ids) for prompt in prompts]
        lengths = [0] * len(prompts)
        try:
            for delta in deltas:
                index = delta.request
                if delta.completions is not None:
                    result = self.result(prompts[index], delta.completions)
                    yield TextDelta(index, result.texts[0][lengths[index] :], result)
                elif text := detokenizers[index].push(delta.ids):
                    lengths[index] += len(text)
                    yield TextDelta(index, text)
        finally:
            deltas.close()

    def _submit_part(self, part: Sequence[Item], at_once: int | None) -> DeltaStream | PolyLMError | None:
        own = [item for item in part if not isinstance(item, PolyLMError)]
        if not own:
            return None
        try:
            prompts, options = [prompt for prompt, _ in own], [each for _, each in own]
            return self._submit(prompts, options, at_once, partial=False)
        except PolyLMError as error:
            return error

    def _results_or_errors(
        self, part: Sequence[Item], deltas: DeltaStream | PolyLMError | None
    ) -> Iterator[GenerationResult | PolyLMError]:
        found: list[list[Completion]] = []
        failed = deltas if isinstance(deltas, PolyLMError) else None
        try:
            if deltas is not None and not isinstance(deltas, PolyLMError):
                found = deltas.completions()
        except PolyLMError as error:
            failed = error
        for item in part:
            if isinstance(item, PolyLMError):
                yield item
            else:
                yield failed or self.result(item[0], found.pop(0))

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as its tokens decode."""
        return self.snapshot.tokenizer.decode(prompt.ids, skip_special_tokens=True)


class _Parts:
    """The items of an iterator in lists; an error of the iterator is kept until what came before it is done."""

    def __init__(self, items: Iterator[Item], size: int) -> None:
        self._items, self._size = items, size
        self.error: PolyLMError | None = None

    def next(self) -> list[Item]:
        """The next items, none at the end or after an error."""
        part: list[Item] = []
        while self.error is None and len(part) < self._size:
            try:
                part.append(next(self._items))
            except StopIteration:
                break
            except PolyLMError as error:
                self.error = error
        return part


def _packaged(folder: str | Path, release: str | None, adapter: str | Path | None) -> Path:
    from modelscope_polylm.backends.vllm.engine import check_vllm
    from modelscope_polylm.packaging.cache import packaged_snapshot

    # before anything large is written
    check_vllm()
    return packaged_snapshot(folder, release, adapter=adapter)


def _defaults_problem(defaults: Mapping[str, Any], takes_all: bool) -> str | None:
    # a release's own defaults go together, so what does not comes from the snapshot's file
    try:
        GenerationOptions.from_layers(defaults, allow_extra=takes_all)
    except OptionError as error:
        return str(error)
    return None


def _check_names(backend_options: Mapping[str, Any]) -> None:
    # the backend checks its own options; here are only the mistakes that it cannot know about
    generation = {field.name for field in option_fields()}
    for name in backend_options:
        if name in generation:
            raise OptionError(f"{name!r} is a generation option: give it to the call, not where the model is loaded.")
        if nearest := nearest_name(name, LOAD_OPTIONS, cutoff=0.85):
            raise OptionError(f"Unknown option {name!r}: did you mean {nearest}?")
