"""The requests of OpenAI's interface as far as they are served, PolyLM's generation options among their fields."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import Field as OptionField
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import option_fields
from modelscope_polylm.serve.errors import RequestError

LARGEST = 2**31 - 1
"""No number of a request but a seed may be larger, or smaller than its opposite: devices compute with bounded ones."""
MOST_TEXTS = 64
MOST_TOKENS = 64
"""Of a word that is forbidden, and of end tokens."""
SAME_IN_OPENAI = ("temperature", "top_p", "seed")
RENAMED = {"output_logprobs": "logprobs", "stop_strings": "stop"}
"""PolyLM's options that OpenAI's interface has under another name."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Token = Annotated[int, Field(ge=0, le=LARGEST)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Word = Annotated[list[Token], Field(min_length=1, max_length=MOST_TOKENS)]


def option_types() -> dict[str, Any]:
    """A field for each generation option that OpenAI's interface lacks, as `pydantic.create_model` takes them."""
    left_out = {*SAME_IN_OPENAI, *RENAMED}
    return {
        field.name: (_type(field) | None, Field(default=None, description=field.metadata["help"]))
        for field in option_fields()
        if field.name not in left_out
    }


def _type(field: OptionField[Any]) -> Any:
    metadata = field.metadata
    if "choices" in metadata:
        return Literal[tuple(metadata["choices"])]
    if metadata.get("nested"):
        return Annotated[list[Word], Field(max_length=MOST_TEXTS)]
    if metadata.get("token"):
        return Token | Word
    name = str(field.type).split(" ")[0]
    return bool if name == "bool" else Annotated[{"int": int, "float": float}[name], _bounds(metadata)]


def _bounds(metadata: Mapping[str, Any]) -> Any:
    above = metadata.get("above")
    smallest = metadata.get("minimum", -LARGEST if above is None else None)
    return Field(ge=smallest, le=metadata.get("maximum", LARGEST), gt=above)


Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MOST_TEXTS)]


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = Field(default=False, description="Send the counts of tokens in a last chunk.")
    include_obfuscation: bool = Field(default=False, description="Not done; taken because clients send it.")


class _Request(BaseModel):
    """What both interfaces have in common."""

    # names that are not known are refused in `reading`, which says why
    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, json_schema_extra={"additionalProperties": False}
    )

    model: str = Field(min_length=1, max_length=1000, description="The model's name, as /v1/models tells it.")
    stream: bool | None = Field(default=False, description="Send the answer as it comes, as server-sent events.")
    stream_options: StreamOptions | None = None
    n: Count | None = Field(
        default=None, description="How many answers. With beam search they are its best ones, best first."
    )
    max_tokens: Count | None = Field(default=None, description="Most tokens of an answer; PolyLM's max_new_tokens.")
    stop: Annotated[str, Field(min_length=1)] | Texts | None = Field(
        default=None, description="Texts that end an answer, which does not contain them."
    )
    temperature: Annotated[float, Field(ge=0, le=LARGEST)] | None = Field(
        default=None, description="Above 0 the answer is sampled; 0 takes the most probable tokens."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Below 1 the answer is sampled among the most probable tokens that hold this share."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        default=None, description="Makes sampling repeatable; such a request runs in a batch of its own."
    )
    user: str | None = Field(default=None, description="Has no effect.")


Request: Any = create_model("Request", __base__=_Request, __doc__=_Request.__doc__, **option_types())


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: str = Field(description="PolyLM reads text alone.", json_schema_extra={"enum": ["text"]})
    text: str | None = None


class Message(BaseModel):
    """A turn of the conversation. What a client sends back of an answer beside its content may be null or empty."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    # what else clients send gets a refusal that says why
    role: str = Field(description="Who says it.", json_schema_extra={"enum": ["user", "assistant"]})
    content: str | list[TextPart] | None = Field(default=None, description="A text, or parts of type 'text'.")


class ChatRequest(Request):  # type: ignore[misc]
    """A conversation that ends with the user's turn."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = Field(default=None, description="The same as max_tokens.")
    allow_role_markers: bool = Field(default=False, description="Let contents hold markers that could forge a turn.")
    logprobs: bool | None = Field(default=None, description="Also return the log-probability of each token.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=0, description="Not supported: only the chosen tokens' are known."
    )


class CompletionRequest(Request):  # type: ignore[misc]
    """A text to continue, or several; token ids stand for a text."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)]
    logprobs: int | None = Field(
        default=None, ge=0, le=0, description="0: also return the log-probability of each token; others are not known."
    )
    best_of: Count | None = Field(
        default=None, description="How many answers to sample, of which the n most probable by token are returned."
    )
    echo: bool | None = Field(default=None, description="Put the prompt before the answer.")


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
