"""Requests: one prompt each, with its own options, checked before any of them reaches a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from modelscope_polylm.errors import ContextLengthError, InputError, OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.network.config import PolyLMConfig

MAX_END_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Asks for the log-probabilities of a prompt's own tokens.

    Attributes:
        start: position of the first token that is scored, at least 1.
        best: how many of the most probable tokens are told for each position.
    """

    start: int
    best: int = 0


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt, its options, and how far it may grow.

    Attributes:
        prompt: its token ids, at least one.
        max_new_tokens: most tokens to add, at least 1; 0 where the prompt is scored, to which nothing is added.
        min_new_tokens: fewest tokens to add before an end token is allowed.
        options: checked options; max_new_tokens and min_new_tokens follow from them and the prompt's length.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    min_new_tokens: int = 0
    options: GenerationOptions = dataclasses.field(default_factory=GenerationOptions)
    scoring: Scoring | None = None

    @property
    def scored_tokens(self) -> Sequence[int]:
        """The tokens of the prompt that are scored."""
        return () if self.scoring is None else self.prompt[self.scoring.start :]

    @property
    def rows_per_prompt(self) -> int:
        """Rows of a batch that it takes: its beams, or its samples."""
        return self.options.num_beams if self.options.num_beams > 1 else self.options.num_return_sequences


def checked_requests(
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions | Sequence[GenerationOptions],
    config: PolyLMConfig,
) -> list[Request]:
    """Make a request of each prompt.

    Args:
        prompts: token ids, one list for each prompt.
        options: for all prompts, or one for each.
        config: bounds ids and lengths.

    Raises:
        InputError: no prompts, an empty one, one with an id outside the vocabulary, or one that leaves no room.
        OptionError: the shortest answer asked for is longer than the longest, or an option names an unknown token id.
    """
    if not prompts:
        raise InputError("There is no prompt: give at least one.")
    each = [options] * len(prompts) if isinstance(options, GenerationOptions) else options
    for distinct in {id(value): value for value in each}.values():
        _check_tokens(distinct, config.vocab_size)
    return [
        _checked_request(index, prompt, own, config)
        for index, (prompt, own) in enumerate(zip(prompts, each, strict=True))
    ]


def scoring_requests(
    texts: Sequence[Sequence[int]], starts: Sequence[int], best: int, config: PolyLMConfig, vocab_size: int
) -> list[Request]:
    """Make a request of each text whose tokens are to be scored.

    Args:
        texts: token ids, at most as many as the context holds.
        starts: of each text the position from which on its tokens are scored.
        best: as in `Scoring`.
        config: bounds lengths.
        vocab_size: tokens that the network tells probabilities of.

    Raises:
        InputError: a text that is too long or has an unknown id, or a start with nothing before it.
    """
    requests = []
    for index, (text, start) in enumerate(zip(texts, starts, strict=True)):
        if not 1 <= start <= len(text):
            raise InputError(
                f"Text {index} has {len(text)} tokens, so they cannot be scored from {start} on: the first one has "
                "nothing before it."
            )
        if len(text) > config.max_positions:
            raise ContextLengthError(
                f"Text {index} has {len(text)} tokens, but the context holds {config.max_positions}: shorten it."
            )
        if min(text) < 0 or max(text) >= vocab_size:
            raise InputError(f"Text {index} has token ids outside 0..{vocab_size - 1}.")
        requests.append(Request(text, max_new_tokens=0, scoring=Scoring(start, best)))
    return requests


def _check_tokens(options: GenerationOptions, vocab_size: int) -> None:
    pad = [] if options.pad_token_id is None else [options.pad_token_id]
    words = {"eos_token_id": options.end_tokens, "pad_token_id": pad}
    words["bad_words_ids"] = [token for word in options.bad_words_ids or () for token in word]
    for name, tokens in words.items():
        if outside := [token for token in tokens if not 0 <= token < vocab_size]:
            raise OptionError(
                f"{name} holds {outside[0]}, which is not an id of the network: give 0..{vocab_size - 1}."
            )
    if len(options.end_tokens) > MAX_END_TOKENS:
        raise OptionError(
            f"eos_token_id names {len(options.end_tokens)} end tokens, but {MAX_END_TOKENS} are the most: give fewer."
        )


def _checked_request(index: int, prompt: Sequence[int], options: GenerationOptions, config: PolyLMConfig) -> Request:
    length = len(prompt)
    if length == 0:
        raise InputError(f"Prompt {index} has no tokens: give it some text.")
    if min(prompt) < 0 or max(prompt) >= config.vocab_size:
        raise InputError(
            f"Prompt {index} has token ids outside 0..{config.vocab_size - 1}: encode it with the snapshot's tokenizer."
        )
    limit, minimum = options.new_tokens(length), options.minimum_new_tokens(length)
    check_room(length, options, config.max_positions, f"Prompt {index}")
    if minimum > limit:
        raise OptionError(
            f"Prompt {index} may get at most {limit} new tokens, but min_length or min_new_tokens asks for {minimum}: "
            "raise max_new_tokens or lower the minimum."
        )
    return Request(prompt, limit, minimum, options)


def check_room(length: int, options: GenerationOptions, max_positions: int, subject: str = "The prompt") -> None:
    """Raise ContextLengthError for a prompt of `length` tokens that leaves its answer no room in the context."""
    limit, free = options.new_tokens(length), max_positions - length
    if free <= 0:
        raise ContextLengthError(
            f"{subject} has {length} tokens, but the context holds {max_positions}, answer included: shorten the "
            "prompt."
        )
    if limit < 1:
        raise ContextLengthError(
            f"{subject} has {length} tokens, so max_length={options.max_length} leaves nothing for an answer: shorten "
            "it, raise max_length, or give max_new_tokens instead."
        )
    if limit > free:
        raise ContextLengthError(
            f"{subject} has {length} tokens, and with {limit} new ones it does not fit the context of "
            f"{max_positions}: shorten it, or set max_new_tokens to at most {free}."
        )
