"""The requests of OpenAI's interface as far as they are served, with PolyLM's generation options among their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field as OptionField
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from modelscope_polylm.generation.options import option_fields
from modelscope_polylm.openai_requests import OWN_OPTIONS

LARGEST = 2**31 - 1
"""No number of a request except a seed may be larger, or smaller than its opposite: devices have bounded ones."""
MAX_MESSAGES = 2048
MAX_PARTS = 256
"""Of a message's content."""
MAX_PROMPTS = 256
MAX_PROMPT_TOKENS = 2**16
MAX_TEXTS = 64
"""Stop strings, and words that are forbidden."""
MAX_TOKENS = 64
"""Of a word that is forbidden, and of end tokens."""
MAX_TOP_LOGPROBS = 20
"""Most probable tokens that are told for a position."""
IGNORED_IN_MESSAGES = ("name", "id", "reasoning", "reasoning_content")
"""What clients send back of an answer, or say about who speaks; the prompt formats have no room for it."""
EMPTY_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id")
"""What may stand in a message while it is null or empty."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Token = Annotated[int, Field(ge=0, le=LARGEST)]
Word = Annotated[list[Token], Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)]
PromptTokens = Annotated[list[Token], Field(min_length=1, max_length=MAX_PROMPT_TOKENS, fail_fast=True)]
StopText = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(default=False, description="Send the counts of tokens in a last chunk.")
    continuous_usage_stats: bool | None = Field(
        default=False, description="With include_usage: also send the counts so far with each chunk."
    )
    include_obfuscation: bool | None = Field(default=False, description="Has no effect.")


class _Request(BaseModel):
    """What both interfaces have in common."""

    # unknown names are refused in `parsing`, which says why
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
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = Field(
        default=None, description="Fewest tokens of an answer; PolyLM's min_new_tokens."
    )
    ignore_eos: bool | None = Field(
        default=None, description="Generate the most tokens that are allowed: the end token is not chosen before."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_TEXTS, fail_fast=True)] | None = Field(
        default=None, description="Texts that end an answer, which does not contain them."
    )
    temperature: Annotated[float, Field(ge=0, le=LARGEST)] | None = Field(
        default=None, description="Above 0 the answer is sampled; 0 takes the most probable tokens."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Below 1 the answer is sampled among the most probable tokens that hold this share."
    )
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None = Field(
        default=None, description="Sample among this many most probable tokens; 0 and -1 switch it off."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        default=None, description="Makes sampling repeatable; such a request runs in a batch of its own."
    )
    user: str | None = Field(default=None, description="Has no effect.")


def option_types() -> dict[str, Any]:
    """A field for each generation option that has none above, as `pydantic.create_model` takes them."""
    return {
        field.name: (_type(field) | None, Field(default=None, description=field.metadata["help"]))
        for field in option_fields()
        if field.name in OWN_OPTIONS and field.name not in _Request.model_fields
    }


def _type(field: OptionField[Any]) -> Any:
    metadata = field.metadata
    if "choices" in metadata:
        return Literal[tuple(metadata["choices"])]
    if metadata.get("nested"):
        return Annotated[list[Word], Field(max_length=MAX_TEXTS, fail_fast=True)]
    if metadata.get("token"):
        return Token | Word
    name = str(field.type).split(" ")[0]
    return bool if name == "bool" else Annotated[{"int": int, "float": float}[name], _bounds(metadata)]


def _bounds(metadata: Mapping[str, Any]) -> Any:
    above = metadata.get("above")
    smallest = metadata.get("minimum", -LARGEST if above is None else None)
    return Field(ge=smallest, le=metadata.get("maximum", LARGEST), gt=above)


Request: Any = create_model("Request", __base__=_Request, __doc__=_Request.__doc__, **option_types())


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: str = Field(description="PolyLM reads text alone.", json_schema_extra={"enum": ["text"]})
    text: str | None = None


class Message(BaseModel):
    """A turn of the conversation; an answer may be sent back with all that the client knows of it."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    # other roles get a refusal that says why
    role: str = Field(
        description="Who says it. PolyLM was not trained with system messages: the server's option says what "
        "becomes of them.",
        json_schema_extra={"enum": ["user", "assistant", "system", "developer"]},
    )
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = Field(
        default=None, description="A text, or parts of type 'text'."
    )


class ChatRequest(Request):  # type: ignore[misc]
    """A conversation that ends with the user's turn."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Count | None = Field(default=None, description="The same as max_tokens.")
    allow_role_markers: bool = Field(default=False, description="Let contents hold markers that could forge a turn.")
    logprobs: bool | None = Field(default=None, description="Also return the log-probability of each token.")
    top_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="With logprobs: also so many most probable tokens at each place.",
    )


class CompletionRequest(Request):  # type: ignore[misc]
    """A text to continue, or several; token ids stand for a text."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | PromptTokens
        | Annotated[list[PromptTokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = Field(
        default=None,
        description="Most tokens of an answer; PolyLM's max_new_tokens. 0 goes with echo: the prompt is only scored.",
    )
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Also return the log-probability of each token, with echo also of the prompt's, and so many most "
        "probable tokens at each place.",
    )
    best_of: Count | None = Field(
        default=None, description="How many answers to sample, of which the n most probable by token are returned."
    )
    echo: bool | None = Field(default=None, description="Put the prompt before the answer.")
