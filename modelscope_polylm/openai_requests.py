"""The fields of OpenAI's requests that have a generation option of PolyLM, and those that ask for nothing here.

Names and meanings are those of OpenAI's API reference for `/v1/chat/completions` and `/v1/completions`, and of vLLM's
additions to it that clients send. A request is a mapping here, so that servers and files of requests can read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from modelscope_polylm.errors import OptionError, nearest_name
from modelscope_polylm.generation.options import GenerationOptions, option_fields

SAME_NAMES = ("temperature", "top_p", "seed")
"""Options that OpenAI's requests have under the same name."""
OTHER_NAMES = {"output_logprobs": "logprobs", "stop_strings": "stop"}
"""Options that OpenAI's requests have under another name."""
OWN_OPTIONS = tuple(field.name for field in option_fields() if field.name not in (*SAME_NAMES, *OTHER_NAMES))
"""Options that OpenAI's requests lack; PolyLM takes them as further fields."""
OPTIONS_BY_FIELD = {
    "n": "num_return_sequences",
    "min_tokens": "min_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop": "stop_strings",
}
FinishReason = Literal["stop", "length"]
FINISH_REASONS: dict[str, FinishReason] = {"eos": "stop", "stop": "stop", "length": "length"}
"""How OpenAI calls the reasons for which an answer ends."""
ANYTHING = object()
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "metadata": (ANYTHING,),
    "safety_identifier": (ANYTHING,),
    "prompt_cache_key": (ANYTHING,),
    "prompt_cache_retention": (ANYTHING,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "stop_token_ids": ([],),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "priority": (0,),
    "use_beam_search": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Fields of OpenAI and vLLM that are not supported, and their values other than null that ask for nothing."""
EVERY_TOKEN = -1
"""vLLM's top_k for sampling among all tokens."""
SEEDS = 2**63
"""OpenAI's seeds are signed; a negative one stands for another seed of these."""


def generation_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """The generation options that a request names.

    As OpenAI's users expect, temperature 0 takes the most probable tokens, and a temperature above 0 or a top_p below 1
    samples.

    Raises:
        OptionError: two of its fields contradict each other.
    """
    named = {name: value for name in (*SAME_NAMES, *OWN_OPTIONS) if (value := request.get(name)) is not None}
    for field, option in OPTIONS_BY_FIELD.items():
        value = request.get(field)
        if value not in (None, []) and named.setdefault(option, value) != value:
            raise OptionError(f"{field}={value} contradicts {option}={named[option]}: give one of them.")
    if isinstance(named.get("seed"), int):
        named["seed"] %= SEEDS
    if named.get("top_k") == EVERY_TOKEN:
        named["top_k"] = 0
    _choose_search(named)
    return named


def without_end(options: GenerationOptions) -> GenerationOptions:
    """The options of a request with `ignore_eos`: the longest answer is also the shortest one."""
    if options.max_new_tokens is None and options.max_length is not None:
        return dataclasses.replace(options, min_length=options.max_length)
    return dataclasses.replace(options, min_new_tokens=options.new_tokens(0))


def _choose_search(options: dict[str, Any]) -> None:
    temperature, top_p, beams = options.get("temperature"), options.get("top_p"), options.get("num_beams", 1)
    if temperature == 0 and not options.get("do_sample"):
        del options["temperature"]
        options.update(do_sample=False, num_beams=beams)
    elif temperature is not None or top_p not in (None, 1):
        samples = options.get("do_sample", beams == 1)
        if not samples and (temperature not in (None, 1) or top_p not in (None, 1)):
            raise OptionError(
                f"temperature and top_p are for sampling, but num_beams={beams} and do_sample={samples} "
                "take the most probable answer: leave out the one or the other."
            )
        options["do_sample"] = samples


def unsupported_field(fields: Mapping[str, Any], known: Iterable[str]) -> tuple[str, str] | None:
    """The first field that asks for something PolyLM does not do, and what to say of it; None if there is none.

    Args:
        fields: those of a request that have no meaning here.
        known: the names of those that have one.
    """
    for name, value in fields.items():
        if name not in WITHOUT_EFFECT:
            nearest = nearest_name(name[:80], [*known, *WITHOUT_EFFECT])
            hint = f" Did you mean {nearest}?" if nearest else ""
            return name, f"Unknown field {name!r:.80}.{hint}"
        neutral = WITHOUT_EFFECT[name]
        if value is not None and ANYTHING not in neutral and not any(value == each for each in neutral):
            return name, f"{name} is not supported: PolyLM cannot do this. Leave it out."
    return None
