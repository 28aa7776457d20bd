"""The responses of OpenAI's interface."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field

from modelscope_polylm.serve import responses
from modelscope_polylm.serve.jobs import Choice, FinishReason, Job, Token


def _is_none(value: object) -> bool:
    return value is None


Score = Annotated[float | None, Field(exclude_if=_is_none, description="With output_scores.")]


def now() -> int:
    """The time as OpenAI writes it: whole seconds since 1970."""
    return int(time.time())


def new_id(prefix: str) -> str:
    """A name for a response."""
    return f"{prefix}-{uuid.uuid4().hex}"


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """A refusal."""

    error: ErrorBody


class Usage(BaseModel):
    """Counts of tokens; those of answers that were computed and not kept are among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(BaseModel):
    """A token and its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenLogprob] = []


class ChatLogprobs(BaseModel):
    """The tokens of an answer."""

    content: list[TokenLogprob]


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    score: Score = None


class ChatResponse(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What is new of an answer."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=_is_none)
    content: str | None = Field(default=None, exclude_if=_is_none)


class ChatChunkChoice(BaseModel):
    """What is new of one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    score: Score = None


class ChatChunk(BaseModel):
    """A piece of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(default=None, exclude_if=_is_none)


class TextLogprobs(BaseModel):
    """The tokens of an answer, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of the answers; in a stream what is new of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None
    score: Score = None


class TextResponse(BaseModel):
    """Answers to prompts, or a piece of their stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = Field(default=None, exclude_if=_is_none)


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "polylm"
    max_model_len: int = Field(description="Tokens of prompt and answer together.")


class ModelList(BaseModel):
    """All models of this server: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok"]


class Format(Protocol):
    """How the answers of one request are written."""

    def whole(self, job: Job) -> BaseModel:
        """All answers, complete."""

    def opening(self, index: int) -> BaseModel | None:
        """The first piece of a choice, if there is anything to say before its text."""

    def piece(self, index: int, text: str) -> BaseModel:
        """More text of a choice."""

    def end(self, index: int, choice: Choice) -> BaseModel:
        """The last piece of a choice, behind its text."""

    def usage(self, job: Job) -> BaseModel:
        """The counts of tokens, behind everything."""


class ChatFormat:
    """The format of /v1/chat/completions."""

    def __init__(self, model: str, request: Any, job: Job) -> None:
        self._response: dict[str, Any] = {
            "id": responses.new_id("chatcmpl"),
            "model": model,
            "created": responses.now(),
        }

    def whole(self, job: Job) -> responses.ChatResponse:
        """See `Format`."""
        choices = [
            responses.ChatChoice(
                index=index,
                message=responses.ChatMessage(content=choice.text),
                logprobs=_chat_logprobs(choice),
                finish_reason=choice.finish_reason or "stop",
                score=choice.score,
            )
            for index, choice in enumerate(job.choices)
        ]
        return responses.ChatResponse(**self._response, choices=choices, usage=_usage(job))

    def opening(self, index: int) -> responses.ChatChunk:
        """See `Format`."""
        return self._chunk(index, responses.Delta(role="assistant", content=""))

    def piece(self, index: int, text: str) -> responses.ChatChunk:
        """See `Format`."""
        return self._chunk(index, responses.Delta(content=text))

    def end(self, index: int, choice: Choice) -> responses.ChatChunk:
        """See `Format`."""
        return self._chunk(
            index,
            responses.Delta(),
            finish_reason=choice.finish_reason,
            logprobs=_chat_logprobs(choice),
            score=choice.score,
        )

    def usage(self, job: Job) -> responses.ChatChunk:
        """See `Format`."""
        return responses.ChatChunk(**self._response, choices=[], usage=_usage(job))

    def _chunk(self, index: int, delta: responses.Delta, **more: Any) -> responses.ChatChunk:
        choice = responses.ChatChunkChoice(index=index, delta=delta, **more)
        return responses.ChatChunk(**self._response, choices=[choice])


class TextFormat:
    """The format of /v1/completions."""

    def __init__(self, model: str, request: Any, job: Job) -> None:
        self._response: dict[str, Any] = {
            "id": responses.new_id("cmpl"),
            "model": model,
            "created": responses.now(),
        }
        self._prompts = self._echoed(job) if request.echo else [""] * len(job.choices)

    @staticmethod
    def _echoed(job: Job) -> list[str]:
        work = job.work
        copies = 1 if work.options.num_beams > 1 else work.candidates
        return [prompt.text for prompt in work.prompts[::copies] for _ in range(work.kept)]

    def whole(self, job: Job) -> responses.TextResponse:
        """See `Format`."""
        choices = [
            self._choice(index, self._prompts[index] + choice.text, choice) for index, choice in enumerate(job.choices)
        ]
        return responses.TextResponse(**self._response, choices=choices, usage=_usage(job))

    def opening(self, index: int) -> responses.TextResponse | None:
        """See `Format`."""
        return self.piece(index, self._prompts[index]) if self._prompts[index] else None

    def piece(self, index: int, text: str) -> responses.TextResponse:
        """See `Format`."""
        return responses.TextResponse(**self._response, choices=[responses.TextChoice(index=index, text=text)])

    def end(self, index: int, choice: Choice) -> responses.TextResponse:
        """See `Format`."""
        return responses.TextResponse(**self._response, choices=[self._choice(index, "", choice)])

    def usage(self, job: Job) -> responses.TextResponse:
        """See `Format`."""
        return responses.TextResponse(**self._response, choices=[], usage=_usage(job))

    def _choice(self, index: int, text: str, choice: Choice) -> responses.TextChoice:
        return responses.TextChoice(
            index=index,
            text=text,
            logprobs=_text_logprobs(choice),
            finish_reason=choice.finish_reason,
            score=choice.score,
        )


def _usage(job: Job) -> responses.Usage:
    prompt, generated = job.work.prompt_tokens, job.generated
    return responses.Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


def _name(token: Token) -> str:
    """The token's text, or its byte where it is a part of a character."""
    return token.text or "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


def _chat_logprobs(choice: Choice) -> responses.ChatLogprobs | None:
    if choice.logprobs is None:
        return None
    content = [
        responses.TokenLogprob(token=_name(token), logprob=token.logprob, bytes=list(token.raw))
        for token in choice.logprobs
    ]
    return responses.ChatLogprobs(content=content)


def _text_logprobs(choice: Choice) -> responses.TextLogprobs | None:
    tokens: Sequence[Token] | None = choice.logprobs
    if tokens is None:
        return None
    offsets = itertools.accumulate((len(token.text) for token in tokens), initial=0)
    return responses.TextLogprobs(
        tokens=[_name(token) for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        text_offset=list(offsets)[: len(tokens)],
    )
