"""OpenAI's names for options, and those of its fields that PolyLM does not have."""

from __future__ import annotations

import difflib
from typing import Any

from modelscope_polylm.app.serve.failures import RequestError
from modelscope_polylm.app.serve.option_types import SAME_IN_OPENAI, option_types
from modelscope_polylm.errors import OptionError

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
}
"""OpenAI's fields that are not served, and their values beside null that ask for nothing."""
OF_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls", "name", "tool_call_id", "reasoning")


def refuse_unknown(request: Any) -> None:
    """Raise RequestError for a field that has no meaning here; nothing is ignored in silence."""
    known = [*type(request).model_fields, *WITHOUT_EFFECT]
    for name, value in (request.model_extra or {}).items():
        if name not in WITHOUT_EFFECT:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise RequestError(f"Unknown field {name!r:.80}.{hint}", name[:80])
        neutral = WITHOUT_EFFECT[name]
        if value is not None and ANYTHING not in neutral and not any(value == each for each in neutral):
            raise RequestError(f"{name} is not supported: PolyLM cannot do this. Leave it out.", name)
    for index, message in enumerate(getattr(request, "messages", ())):
        for name, value in (message.model_extra or {}).items():
            if name not in OF_MESSAGES or value not in (None, [], {}, ""):
                raise RequestError(f"messages[{index}].{name:.80} is not supported: leave it out.", "messages")


def generation_call(request: Any) -> dict[str, Any]:
    """The generation options that a request names. Raises OptionError where two of its fields contradict."""
    names = [*SAME_IN_OPENAI, *option_types()]
    call = {name: value for name in names if (value := getattr(request, name)) is not None}
    call.pop("output_scores", None)
    _rename(request, call, "n", "num_return_sequences")
    for name in ("max_tokens", "max_completion_tokens"):
        _rename(request, call, name, "max_new_tokens")
    if request.stop is not None:
        call["stop_strings"] = request.stop
    if "seed" in call:
        call["seed"] %= 2**63
    _choose_search(call)
    return call


def _rename(request: Any, call: dict[str, Any], name: str, option: str) -> None:
    value = getattr(request, name, None)
    if value is None:
        return
    if call.setdefault(option, value) != value:
        raise OptionError(f"{name}={value} contradicts {option}={call[option]}: give one of them.")


def _choose_search(call: dict[str, Any]) -> None:
    """As OpenAI's users expect: temperature 0 takes the most probable tokens, above 0 or with top_p it samples."""
    temperature, top_p, beams = call.get("temperature"), call.get("top_p"), call.get("num_beams", 1)
    if temperature == 0 and not call.get("do_sample"):
        del call["temperature"]
        call.update(do_sample=False, num_beams=beams)
    elif temperature is not None or top_p not in (None, 1):
        samples = call.get("do_sample", beams == 1)
        if not samples and (temperature not in (None, 1) or top_p not in (None, 1)):
            raise OptionError(
                f"temperature and top_p are for sampling, but num_beams={beams} and do_sample={samples} "
                "take the most probable answer: leave out the one or the other."
            )
        call["do_sample"] = samples
