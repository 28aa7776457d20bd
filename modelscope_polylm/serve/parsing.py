"""From a request of OpenAI's interface to what the engine gets, or to a refusal that says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.sampling import row_seed
from modelscope_polylm.inputs import Prompt
from modelscope_polylm.openai_requests import generation_options, unsupported_field, without_end
from modelscope_polylm.serve.errors import RequestError
from modelscope_polylm.serve.requests import ParsedRequest
from modelscope_polylm.serve.schemas import (
    EMPTY_IN_MESSAGES,
    IGNORED_IN_MESSAGES,
    ChatRequest,
    CompletionRequest,
    Message,
)
from modelscope_polylm.text.prompts import SYSTEM_ROLES

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

SYSTEM_NOTE = "PolyLM was not trained with system messages: this one stands before the user's message."


class RequestReader:
    """Reads requests for one model.

    Args:
        generator: the loaded model.
        defaults: options of the server; they win over the model's, and a request's win over them.
        max_rows: most rows that a request may take.
        system_message: what becomes of system messages, as in `join_turns`.

    Raises:
        OptionError: `defaults` contradict each other, or take more rows.
    """

    def __init__(
        self,
        generator: TextGenerator,
        defaults: Mapping[str, Any],
        max_rows: int,
        system_message: str = "prepend",
    ) -> None:
        self._generator, self._defaults, self._max_rows = generator, defaults, max_rows
        self._system_message = system_message
        rows = max((options := self._options({})).num_beams, options.num_return_sequences)
        if rows > max_rows:
            raise OptionError(
                f"A request without options takes {rows} rows, one for each beam, but only {max_rows} are computed at "
                "once: raise --max-rows, or set --num-beams."
            )

    def read_chat(self, request: ChatRequest) -> ParsedRequest:
        """Read a conversation.

        Raises:
            RequestError, InputError, OptionError: it cannot be done, and why.
        """
        refuse_unknown(request)
        if request.top_logprobs and not request.logprobs:
            raise RequestError("top_logprobs needs logprobs=true.", "top_logprobs")
        options, wanted = self._options_of(request)
        messages = [{"role": message.role, "content": _content(message)} for message in request.messages]
        prompt = self._generator.reader.read(
            {"messages": messages},
            options,
            allow_role_markers=request.allow_role_markers,
            system_message=self._system_message,
        )
        parsed = self._parsed([prompt], options, wanted, wanted, request)
        return dataclasses.replace(parsed, best=request.top_logprobs or None)

    def read_completion(self, request: CompletionRequest) -> ParsedRequest:
        """Read texts to continue. Raises as `read_chat`."""
        refuse_unknown(request)
        options, wanted = self._options_of(request)
        candidates = max(request.best_of or wanted, wanted)
        _check_completion(request, options, wanted)
        generates = request.max_tokens != 0
        if not generates:
            options, candidates = dataclasses.replace(options, num_beams=1, num_return_sequences=1), wanted
        prompts = [self._prompt(value, options if generates else None) for value in _prompts(request.prompt)]
        parsed = self._parsed(prompts, options, wanted, candidates, request)
        echo = bool(request.echo)
        is_scored = bool(request.logprobs) or (echo and request.logprobs is not None) or not generates
        return dataclasses.replace(
            parsed, best=(request.logprobs or 0) if is_scored else None, echo=echo, generates=generates
        )

    def _options_of(self, request: Any) -> tuple[GenerationOptions, int]:
        """The request's options, and how many answers it wants; beam search alone gets several from one row."""
        call = generation_options(dict(request))
        call.pop("output_scores", None)
        if call.get("max_new_tokens") == 0:
            del call["max_new_tokens"]
        asked = call.pop("num_return_sequences", None)
        options = self._options(call)
        if asked is not None and options.num_beams > 1:
            options = self._options({**call, "num_return_sequences": asked})
        wanted = asked or options.num_return_sequences
        if options.num_beams == 1:
            options = dataclasses.replace(options, num_return_sequences=1)
        if request.ignore_eos:
            options = without_end(options)
        self._check_tokens(options)
        return dataclasses.replace(options, output_logprobs=_wants_logprobs(request), output_scores=False), wanted

    def _options(self, call: Mapping[str, Any]) -> GenerationOptions:
        return GenerationOptions.from_layers(self._generator.snapshot.generation, self._defaults, call)

    def _check_tokens(self, options: GenerationOptions) -> None:
        size = self._generator.snapshot.tokenizer.vocab_size
        words = (token for word in options.bad_words_ids or () for token in word)
        padding = () if options.pad_token_id is None else (options.pad_token_id,)
        for token in (*options.end_tokens, *padding, *words):
            if token >= size:
                raise OptionError(f"Token id {token} does not exist: this model has the ids 0 to {size - 1}.")

    def _prompt(self, value: str | list[int], options: GenerationOptions | None) -> Prompt:
        """A prompt; without options it gets no answer, which needs no room."""
        tokenizer = self._generator.snapshot.tokenizer
        if isinstance(value, list):
            return Prompt(tokenizer.decode(value), value)
        if options is None and value:
            return Prompt(value, tokenizer.encode(value))
        return self._generator.reader.read(value, options or GenerationOptions())

    def _parsed(
        self, prompts: Sequence[Prompt], options: GenerationOptions, wanted: int, candidates: int, request: Any
    ) -> ParsedRequest:
        stops, beams = options.stop_texts, options.num_beams
        copies = 1 if beams > 1 else candidates
        rows = len(prompts) * copies * beams
        if rows > self._max_rows:
            raise OptionError(
                f"The request takes {rows} rows, one for each prompt and each of its answers or beams, but this server "
                f"computes {self._max_rows} at once: lower n, best_of, num_beams or the number of prompts."
            )
        if beams > 1:  # the engine's beam search knows no stop strings: its answers are cut
            options = dataclasses.replace(options, stop_strings=None)
        own = [_sampled(options, copy) for _ in prompts for copy in range(copies)]
        copied = [prompt for prompt in prompts for _ in range(copies)]
        return ParsedRequest(copied, own, stops, wanted, candidates, bool(request.output_scores))


def refuse_unknown(request: Any) -> None:
    """Raise RequestError for a field that has no meaning here; nothing is ignored in silence."""
    found = unsupported_field(request.model_extra or {}, type(request).model_fields)
    if found is not None:
        raise RequestError(found[1], found[0][:80])
    for index, message in enumerate(getattr(request, "messages", ())):
        for name, value in (message.model_extra or {}).items():
            if name in IGNORED_IN_MESSAGES or (name in EMPTY_IN_MESSAGES and value in (None, [], {}, "")):
                continue
            raise RequestError(f"messages[{index}].{name:.80} is not supported: leave it out.", "messages")


def note_of(request: Any) -> str | None:
    """What a client should know of the answer to a request that could be read."""
    messages = getattr(request, "messages", ())
    has_system = any(message.role in SYSTEM_ROLES and (_content(message) or "").strip() for message in messages)
    return SYSTEM_NOTE if has_system else None


def _wants_logprobs(request: Any) -> bool:
    return request.logprobs is not None and request.logprobs is not False


def _content(message: Message) -> str | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise InputError(f"A message has a part of type {part.type!r:.80}, but PolyLM reads text alone.")
    return "".join(part.text or "" for part in message.content)


def _prompts(prompt: Any) -> Sequence[str | list[int]]:
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    return [prompt] if is_one else prompt


def _sampled(options: GenerationOptions, sample: int) -> GenerationOptions:
    """The options of one of a prompt's samples."""
    return options if options.seed is None else dataclasses.replace(options, seed=row_seed(options.seed, sample))


def _check_completion(request: CompletionRequest, options: GenerationOptions, wanted: int) -> None:
    if request.best_of is not None and request.best_of < wanted:
        raise OptionError(f"best_of={request.best_of} must be at least n={wanted}.")
    if request.best_of is not None and options.num_beams > 1:
        raise OptionError("best_of is for sampling: with beam search, set num_beams and n.")
    if request.stream and (request.best_of or wanted) > wanted:
        raise OptionError(f"best_of={request.best_of} with stream=true: which answers are best is known at their end.")
    if request.max_tokens == 0 and not request.echo:
        raise OptionError("max_tokens=0 without echo asks for nothing: raise it, or set echo=true.")
