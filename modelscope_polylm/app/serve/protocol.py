"""The requests of OpenAI's interface as far as they are served, PolyLM's generation options among their fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from modelscope_polylm.app.serve.option_types import LARGEST, MOST_TEXTS, Count, Tokens, option_types

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
