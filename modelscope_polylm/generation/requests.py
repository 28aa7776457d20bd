"""Checks prompts against options and context, before any of them reaches a model."""

from __future__ import annotations

from collections.abc import Sequence

from modelscope_polylm.errors import ContextLengthError, InputError, OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Request
from modelscope_polylm.network.config import PolyLMConfig


def checked_requests(
    prompts: Sequence[Sequence[int]], options: GenerationOptions, config: PolyLMConfig
) -> list[Request]:
    """The prompts with their lengths.

    Raises:
        InputError: no prompts, an empty one, one with an id outside the vocabulary, or one that leaves no room.
        OptionError: the shortest answer asked for is longer than the longest, or an option names an unknown token id.
    """
    if not prompts:
        raise InputError("There is no prompt: give at least one.")
    _check_tokens(options, config.vocab_size)
    return [_checked_request(index, prompt, options, config) for index, prompt in enumerate(prompts)]


def _check_tokens(options: GenerationOptions, vocab_size: int) -> None:
    pad = [] if options.pad_token_id is None else [options.pad_token_id]
    words = {"eos_token_id": options.end_tokens, "pad_token_id": pad}
    words["bad_words_ids"] = [token for word in options.bad_words_ids or () for token in word]
    for name, tokens in words.items():
        if outside := [token for token in tokens if not 0 <= token < vocab_size]:
            raise OptionError(
                f"{name} holds {outside[0]}, which is not an id of the network: give 0..{vocab_size - 1}."
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
    _check_room(index, length, limit, options, config)
    if minimum > limit:
        raise OptionError(
            f"Prompt {index} may get at most {limit} new tokens, but min_length or min_new_tokens asks for {minimum}: "
            "raise max_new_tokens or lower the minimum."
        )
    return Request(prompt, limit, minimum)


def _check_room(index: int, length: int, limit: int, options: GenerationOptions, config: PolyLMConfig) -> None:
    if limit < 1:
        raise ContextLengthError(
            f"Prompt {index} has {length} tokens and max_length={options.max_length}, which leaves no room for an "
            "answer: raise max_length or set max_new_tokens instead."
        )
    if length + limit > config.max_positions:
        free = config.max_positions - length
        advice = f"set max_new_tokens to at most {free}" if free > 0 else "shorten the prompt"
        raise ContextLengthError(
            f"Prompt {index} has {length} tokens, and with {limit} new ones it does not fit the model's "
            f"{config.max_positions} positions: {advice}."
        )
