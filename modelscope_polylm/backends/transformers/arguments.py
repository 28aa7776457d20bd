"""Turns requests and options into batches and arguments for transformers' `generate()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.requests import Request

# What these ask for has no place in a Completion.
RAW_OUTPUTS = ("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_logits")


def check_options(options: GenerationOptions) -> None:
    """Raises OptionError for what this backend does not have."""
    for name in RAW_OUTPUTS:
        if options.extra.get(name):
            raise OptionError(
                f"{name} has no place in an answer: leave it out, or call `backend.model.generate` yourself."
            )
    # Most calls name no rules and get transformers' own; who asks for the others must not get these.
    if options.beam_rules == "4.31":
        raise OptionError(
            f"beam_rules={options.beam_rules!r} is not in the transformers backend, which follows the installed "
            "release: use backend='native', or beam_rules='5'."
        )


def batches(requests: Sequence[Request], size: int) -> list[list[int]]:
    """Which requests are generated together, as lists of at most `size` indices.

    Only requests with equal options can be. Prompts of different lengths share a batch by padding on the left, unless
    padding could show in the answers: with options that only transformers knows, and in beam search with different
    limits.
    """
    alike: list[list[int]] = []
    for index, request in enumerate(requests):
        group = next((group for group in alike if requests[group[0]].options == request.options), None)
        alike.append([index]) if group is None else group.append(index)
    parts = [group[first : first + size] for group in alike for first in range(0, len(group), size)]
    return [batch for part in parts for batch in _unpadded(requests, part)]


def _unpadded(requests: Sequence[Request], part: list[int]) -> list[list[int]]:
    options, limits = requests[part[0]].options, {requests[index].max_new_tokens for index in part}
    if not options.extra and (options.num_beams == 1 or len(limits) == 1):
        return [part]
    by_length: dict[int, list[int]] = {}
    for index in part:
        by_length.setdefault(len(requests[index].prompt), []).append(index)
    return list(by_length.values())


def wants_scores(options: GenerationOptions) -> bool:
    """Whether scores have to be computed, which costs memory or a further pass."""
    return options.output_scores or options.output_logprobs or options.num_return_sequences > 1


def padded_prompts(requests: Sequence[Request], pad_token: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both [prompts, longest prompt] int64, padded on the left."""
    longest = max(len(request.prompt) for request in requests)
    padding = [longest - len(request.prompt) for request in requests]
    ids = [[pad_token] * pad + list(request.prompt) for pad, request in zip(padding, requests, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def generate_arguments(
    requests: Sequence[Request],
    options: GenerationOptions,
    vocabulary: int,
    rows_of_embedding: int,
    device: torch.device,
) -> dict[str, Any]:
    """Everything for `generate()` except the stopping criteria.

    Args:
        requests: one batch.
        options: checked options.
        vocabulary: number of token ids that may be generated.
        rows_of_embedding: number of logits; those from `vocabulary` on are never chosen.
        device: where the prompts go.
    """
    arguments: dict[str, Any] = {
        **padded_prompts(requests, options.end_tokens[0], device),
        "max_new_tokens": max(request.max_new_tokens for request in requests),
        "num_beams": options.num_beams,
        "num_return_sequences": options.num_return_sequences,
        "do_sample": options.do_sample,
        "eos_token_id": list(options.end_tokens),
        # Rows that ended are filled with the end token, which is cut off; a pad token would look like an answer.
        "pad_token_id": options.end_tokens[0],
        "return_dict_in_generate": True,
        **_search_arguments(options),
        **options.extra,
    }
    if len({len(request.prompt) for request in requests}) > 1:
        processors = [_processors(request, options, device) for request in requests]
        arguments["logits_processor"] = LogitsProcessorList([WithoutPadding(requests, processors)])
    else:
        arguments.update(_processor_arguments(requests[0], options))
    if vocabulary < rows_of_embedding:
        arguments["suppress_tokens"] = [*arguments.get("suppress_tokens", ()), *range(vocabulary, rows_of_embedding)]
    return {name: value for name, value in arguments.items() if name not in RAW_OUTPUTS[1:]}


def _search_arguments(options: GenerationOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if options.num_beams > 1:
        arguments.update(early_stopping=options.early_stopping, length_penalty=options.length_penalty)
        arguments["output_scores"] = wants_scores(options)
    if options.do_sample:
        names = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        arguments.update({name: getattr(options, name) for name in names})
    return arguments


def _processor_arguments(request: Request, options: GenerationOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "repetition_penalty": options.repetition_penalty,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
        "bad_words_ids": options.bad_words_ids,
        "min_new_tokens": request.min_new_tokens or None,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _processors(request: Request, options: GenerationOptions, device: torch.device) -> LogitsProcessorList:
    # In the order of GenerationMixin._get_logits_processor.
    processors = LogitsProcessorList()
    ends = torch.tensor(options.end_tokens, device=device)
    if options.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.no_repeat_ngram_size > 0:
        processors.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if options.bad_words_ids:
        processors.append(NoBadWordsLogitsProcessor(options.bad_words_ids, ends))
    if request.min_new_tokens > 0:
        processors.append(
            MinLengthLogitsProcessor(len(request.prompt) + request.min_new_tokens, ends, device=str(device))
        )
    return processors


class WithoutPadding:
    """A logits processor that shows other processors each row without the padding before its prompt."""

    def __init__(self, requests: Sequence[Request], processors: Sequence[Any]):
        longest = max(len(request.prompt) for request in requests)
        self._padding = [longest - len(request.prompt) for request in requests]
        self._processors = processors

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # input_ids: [prompts * rows, length]; scores: [prompts * rows, vocabulary]
        rows = input_ids.shape[0] // len(self._padding)
        for index, (padding, processors) in enumerate(zip(self._padding, self._processors, strict=True)):
            part = slice(index * rows, (index + 1) * rows)
            scores[part] = processors(input_ids[part, padding:], scores[part])
        return scores
