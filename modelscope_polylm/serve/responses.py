"""The responses of OpenAI's interface, and how the answers of a request become one of them or a stream of chunks."""

from __future__ import annotations

import itertools
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from modelscope_polylm.openai_requests import FinishReason
from modelscope_polylm.serve.requests import Choice, RequestState, Token


def _is_none(value: object) -> bool:
    return value is None


Score = Annotated[float | None, Field(exclude_if=_is_none, description="With output_scores.")]


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
    """Counts of tokens; those of answers that were computed and not wanted are among them."""

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
    """The tokens of an answer, with echo after those of its prompt, in columns.

    `top_logprobs` has the most probable tokens at each place, and the token itself; the first token of a prompt has
    nothing before it, so no log-probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None
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


class Version(BaseModel):
    """The release of this package."""

    version: str


class Format(ABC):
    """How the answers to one request are written.

    Args:
        model: the model's name.
        request: what was asked.
        state: the request on its way.
    """

    prefix: str
    """What the names of the responses begin with."""

    def __init__(self, model: str, request: Any, state: RequestState) -> None:
        name = f"{self.prefix}-{uuid.uuid4().hex}"
        self._response: dict[str, Any] = {"id": name, "model": model, "created": int(time.time())}

    @abstractmethod
    def whole(self, state: RequestState) -> BaseModel:
        """All answers, complete."""

    @abstractmethod
    def opening(self, index: int) -> ChatChunk | TextResponse | None:
        """The first chunk of a choice, if there is anything to say before its text."""

    @abstractmethod
    def piece(self, index: int, text: str) -> ChatChunk | TextResponse:
        """A chunk with more text of a choice."""

    @abstractmethod
    def end(self, index: int, choice: Choice) -> ChatChunk | TextResponse:
        """The last chunk of a choice, after its text."""

    @abstractmethod
    def usage(self, state: RequestState) -> ChatChunk | TextResponse:
        """A chunk with the counts of tokens, after all choices."""


class ChatFormat(Format):
    """/v1/chat/completions."""

    prefix = "chatcmpl"

    def whole(self, state: RequestState) -> ChatResponse:
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessage(content=choice.text),
                logprobs=_chat_logprobs(choice),
                finish_reason=choice.finish_reason or "stop",
                score=choice.score,
            )
            for index, choice in enumerate(state.choices)
        ]
        return ChatResponse(**self._response, choices=choices, usage=usage_of(state))

    def opening(self, index: int) -> ChatChunk:
        return self._chunk(index, Delta(role="assistant", content=""))

    def piece(self, index: int, text: str) -> ChatChunk:
        return self._chunk(index, Delta(content=text))

    def end(self, index: int, choice: Choice) -> ChatChunk:
        return self._chunk(
            index,
            Delta(),
            finish_reason=choice.finish_reason,
            logprobs=_chat_logprobs(choice),
            score=choice.score,
        )

    def usage(self, state: RequestState) -> ChatChunk:
        return ChatChunk(**self._response, choices=[], usage=usage_of(state))

    def _chunk(self, index: int, delta: Delta, **more: Any) -> ChatChunk:
        return ChatChunk(**self._response, choices=[ChatChunkChoice(index=index, delta=delta, **more)])


class TextFormat(Format):
    """/v1/completions."""

    prefix = "cmpl"

    def __init__(self, model: str, request: Any, state: RequestState) -> None:
        super().__init__(model, request, state)
        self._wanted: int | None = request.logprobs
        self._prompts = _echoed(state) if request.echo else [""] * len(state.choices)

    def whole(self, state: RequestState) -> TextResponse:
        choices = [
            self._choice(index, self._prompts[index] + choice.text, choice)
            for index, choice in enumerate(state.choices)
        ]
        return TextResponse(**self._response, choices=choices, usage=usage_of(state))

    def opening(self, index: int) -> TextResponse | None:
        return self.piece(index, self._prompts[index]) if self._prompts[index] else None

    def piece(self, index: int, text: str) -> TextResponse:
        return TextResponse(**self._response, choices=[TextChoice(index=index, text=text)])

    def end(self, index: int, choice: Choice) -> TextResponse:
        return TextResponse(**self._response, choices=[self._choice(index, "", choice)])

    def usage(self, state: RequestState) -> TextResponse:
        return TextResponse(**self._response, choices=[], usage=usage_of(state))

    def _choice(self, index: int, text: str, choice: Choice) -> TextChoice:
        return TextChoice(
            index=index,
            text=text,
            logprobs=_text_logprobs(choice, len(self._prompts[index]), self._wanted),
            finish_reason=choice.finish_reason,
            score=choice.score,
        )


def usage_of(state: RequestState) -> Usage:
    """The counts of tokens so far."""
    prompt, generated = state.request.prompt_tokens, state.generated
    return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


def _echoed(state: RequestState) -> list[str]:
    """The prompt of each choice."""
    request = state.request
    return [prompt.text for prompt in request.prompts[:: request.copies] for _ in range(request.wanted)]


def _chat_logprobs(choice: Choice) -> ChatLogprobs | None:
    if choice.logprobs is None:
        return None
    return ChatLogprobs(content=[_chat_logprob(token) for token in choice.logprobs])


def _chat_logprob(token: Token) -> TokenLogprob:
    best = [_chat_logprob(each) for each in token.best]
    return TokenLogprob(token=token.name, logprob=token.logprob or 0.0, bytes=list(token.raw), top_logprobs=best)


def _text_logprobs(choice: Choice, prompt_length: int, wanted: int | None) -> TextLogprobs | None:
    if choice.logprobs is None or wanted is None:
        return None
    before = choice.prompt_logprobs or []
    tokens = [*before, *choice.logprobs]
    return TextLogprobs(
        tokens=[token.name for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[_by_name(token) for token in tokens] if wanted else None,
        text_offset=_offsets(before, 0) + _offsets(choice.logprobs, prompt_length),
    )


def _offsets(tokens: Sequence[Token], first: int) -> list[int]:
    """Where each token's text begins."""
    return list(itertools.accumulate((len(token.text) for token in tokens), initial=first))[: len(tokens)]


def _by_name(token: Token) -> dict[str, float] | None:
    """The most probable tokens; of two with one name the more probable one."""
    if token.logprob is None:
        return None
    found = {each.name: each.logprob or 0.0 for each in reversed(token.best)}
    return dict(reversed(found.items())) | ({} if token.name in found else {token.name: token.logprob})
