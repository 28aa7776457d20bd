"""Prompts in, texts out: one snapshot on one backend, without ModelScope; every door stands on it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import ContextLengthError, InputError, OptionError, nearest_name
from modelscope_polylm.generation.options import GenerationOptions, option_fields
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer
from modelscope_polylm.text.prompts import (
    Message,
    PromptFormat,
    check_messages,
    fit_messages,
    join_turns,
    known_format,
    render,
)
from modelscope_polylm.text.tokenizer import PolyLMTokenizer, check_text

if TYPE_CHECKING:
    import torch

    from modelscope_polylm.backends.base import Answer, Backend, Update
    from modelscope_polylm.snapshot import Snapshot


LOAD_OPTIONS = ("device", "dtype", "torch_dtype", "backend", "prompt_format", "release")


@dataclass(frozen=True)
class Reply:
    """The answers to one prompt.

    Attributes:
        prompt_text: the prompt as its tokens decode, which may differ from what was typed (normalization).
        texts: the answers without the prompt, best first; in a stream, what is known of the only one.
        answers: ids, scores and log-probabilities of the answers; empty in a stream until they are complete.
    """

    prompt_text: str
    texts: list[str]
    answers: Sequence[Answer] = ()


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
            backend_options: options of the backend.

        Raises:
            SnapshotError: the folder is not a complete snapshot.
            DeviceError: the device does not exist.
            OptionError: an unknown backend, option or precision.
            DependencyError: vLLM is asked for and missing.
        """
        from modelscope_polylm.backends import create_backend
        from modelscope_polylm.backends.placement import choose_device, choose_dtype
        from modelscope_polylm.snapshot import open_snapshot

        _check_names(backend_options)
        chosen = choose_device(device)
        precision = choose_dtype(dtype, chosen)
        if backend == "vllm":
            folder = _packaged(folder, release)
        snapshot = open_snapshot(folder, prompt_format=prompt_format, release=release)
        return cls(snapshot, create_backend(backend, snapshot, chosen, precision, **backend_options))

    def options(self, call: Mapping[str, Any]) -> GenerationOptions:
        """The options of a call over the defaults of the snapshot and its release. Raises OptionError."""
        takes_all, defaults = self.backend.name == "transformers", self.snapshot.generation
        try:
            return GenerationOptions.from_layers(defaults, call, allow_extra=takes_all)
        except OptionError as error:
            if str(error) != _defaults_problem(defaults, takes_all):
                raise
            raise OptionError(f"{self.snapshot.folder}/generation_config.json: {error}") from error

    def reply(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Reply]:
        """Answer all prompts together, and return when every answer is complete."""
        return self._complete(prompts, self.backend.generate([prompt.ids for prompt in prompts], options))

    def stream(
        self, prompts: Sequence[Prompt], options: GenerationOptions
    ) -> Generator[list[Reply | None], None, list[Reply]]:
        """Answer all prompts together, as the tokens come.

        Of several answers to a prompt nothing is shown before it is known which one is the best.

        Yields:
            For each prompt its reply so far, the whole text each time; None where nothing is known yet.

        Returns:
            The complete replies.
        """
        updates = self.backend.stream([prompt.ids for prompt in prompts], options)
        return self._replies(prompts, updates, hold_back=options.num_return_sequences > 1)

    def _replies(
        self, prompts: Sequence[Prompt], updates: Generator[Update, None, list[list[Answer]]], hold_back: bool
    ) -> Generator[list[Reply | None], None, list[Reply]]:
        texts = _TextsSoFar(self, prompts)
        try:
            while True:
                texts.add(next(updates))
                yield [None] * len(prompts) if hold_back else texts.replies()
        except StopIteration as finished:
            return self._complete(prompts, finished.value)
        finally:
            updates.close()

    def _complete(self, prompts: Sequence[Prompt], results: list[list[Answer]]) -> list[Reply]:
        return [self._reply(prompt, answers) for prompt, answers in zip(prompts, results, strict=True)]

    def _reply(self, prompt: Prompt, answers: Sequence[Answer]) -> Reply:
        head, decode = self.prompt_text(prompt), self.snapshot.tokenizer.decode
        texts = [decode([*prompt.ids, *answer.ids], skip_special_tokens=True)[len(head) :] for answer in answers]
        return Reply(head, texts, answers)

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as its tokens decode."""
        return self.snapshot.tokenizer.decode(prompt.ids, skip_special_tokens=True)


class _TextsSoFar:
    """The answers of a batch while they grow."""

    def __init__(self, generator: TextGenerator, prompts: Sequence[Prompt]) -> None:
        self._heads = [generator.prompt_text(prompt) for prompt in prompts]
        self._detokenizers = [IncrementalDetokenizer(generator.snapshot.tokenizer, prompt.ids) for prompt in prompts]
        self._texts = [""] * len(prompts)

    def add(self, update: Update) -> None:
        for row, ids in enumerate(update):
            self._texts[row] += self._detokenizers[row].push(ids)

    def replies(self) -> list[Reply | None]:
        return [Reply(head, [text]) if text else None for head, text in zip(self._heads, self._texts, strict=True)]


def _packaged(folder: str | Path, release: str | None) -> Path:
    from modelscope_polylm.backends.vllm.engine import check_vllm
    from modelscope_polylm.packaging.cache import packaged_snapshot

    # before anything large is written
    check_vllm()
    return packaged_snapshot(folder, release)


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


ROOM_FOR_ANSWER = 128  # tokens kept free for the answer where only max_length says how long both may be together


@dataclass(frozen=True)
class Prompt:
    """One prompt, read and checked.

    Attributes:
        text: what the model continues.
        ids: its token ids, at least one.
        messages: the whole conversation that the text was made of; None where a plain text was given.
    """

    text: str
    ids: list[int]
    messages: list[Message] | None = None


@dataclass(frozen=True)
class InputReader:
    """Reads inputs for one snapshot.

    Attributes:
        tokenizer: makes the token ids.
        prompt_format: how messages become one text; None where that is unknown, and only plain texts can be read.
        positions: tokens that the context holds.
    """

    tokenizer: PolyLMTokenizer
    prompt_format: PromptFormat | None
    positions: int

    def read(
        self,
        value: Any,
        options: GenerationOptions,
        chat: bool = False,
        allow_role_markers: bool = False,
        system_message: str = "refuse",
    ) -> Prompt:
        """Read one input and make sure that its answer has room.

        Args:
            value: a text, `{'text': text}`, `{'messages': [...]}`, or a list of messages with 'role' and 'content'.
            options: say how many tokens the answer may take.
            chat: take a plain text as the message of a user.
            allow_role_markers: let contents hold the markers that begin a turn.
            system_message: 'prepend' joins turns as `join_turns` does.

        Raises:
            InputError: not one of these, empty, badly formed, or without room for the answer in the context.
            OptionError: the answer asked for would not fit behind any prompt.
        """
        limit = self._prompt_limit(options)
        if is_conversation(value):
            messages = value["messages"] if isinstance(value, Mapping) else value
        elif chat:
            messages = [{"role": "user", "content": plain_text(value)}]
        else:
            text = plain_text(value)
            return self._with_room(Prompt(text, self.tokenizer.encode(text)), options)
        prompt_format = known_format(self.prompt_format)
        if system_message == "prepend" and isinstance(messages, Sequence):
            messages = join_turns(messages, system_message)
        checked = check_messages(messages, allow_role_markers, prompt_format)
        kept = fit_messages(checked, prompt_format, self._count_tokens, limit)
        text = render(kept, prompt_format)
        return self._with_room(Prompt(text, self.tokenizer.encode(text), checked), options)

    def read_all(
        self, values: Sequence[Any], options: GenerationOptions, first: int = 0, **parameters: Any
    ) -> list[Prompt]:
        """Read several inputs; an error says which one it is about, counting from `first`."""
        prompts = []
        for index, value in enumerate(values, start=first):
            try:
                prompts.append(self.read(value, options, **parameters))
            except (InputError, OptionError) as error:
                raise type(error)(f"Input {index}: {error}") from error
        return prompts

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def _prompt_limit(self, options: GenerationOptions) -> int:
        """Most tokens that a conversation's prompt may have."""
        if options.max_new_tokens is None and options.max_length is not None:
            whole = min(options.max_length, self.positions)
            return whole - min(ROOM_FOR_ANSWER, whole // 2)
        wanted = options.new_tokens(0)
        if wanted >= self.positions:
            raise OptionError(
                f"max_new_tokens={wanted} leaves no room for a prompt: the context has {self.positions} tokens."
            )
        return self.positions - wanted

    def _with_room(self, prompt: Prompt, options: GenerationOptions) -> Prompt:
        length = len(prompt.ids)
        if length == 0:
            raise InputError(f"The prompt {prompt.text!r} is empty: there is nothing to continue. Give it some text.")
        if length >= self.positions:
            raise ContextLengthError(
                f"The prompt has {length} tokens, but the context holds {self.positions}, answer included: shorten it."
            )
        wanted = options.new_tokens(length)
        if wanted < 1:
            raise ContextLengthError(
                f"The prompt has {length} tokens, so max_length={options.max_length} leaves nothing for an answer: "
                "shorten it, raise max_length, or give max_new_tokens instead."
            )
        if wanted > self.positions - length:
            raise ContextLengthError(
                f"The prompt has {length} tokens, and with {wanted} new ones it does not fit the context of "
                f"{self.positions}: shorten it, or set max_new_tokens to at most {self.positions - length}."
            )
        return prompt


def is_conversation(value: Any) -> bool:
    """Whether an input is one conversation: a dict with 'messages', or a list of dicts that all have a role."""
    if isinstance(value, Mapping):
        return "messages" in value
    return isinstance(value, list) and bool(value) and all(_is_message(item) for item in value)


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item


def plain_text(value: Any) -> str:
    """The text of an input that is no conversation: the input itself, or its 'text'. Raises InputError."""
    if isinstance(value, Mapping) and "text" not in value:
        raise InputError(f"A row needs 'text' or 'messages', but this one has the keys {sorted(map(str, value))}.")
    text = value["text"] if isinstance(value, Mapping) else value
    check_text(text)
    return str(text)
