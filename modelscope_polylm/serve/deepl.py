"""DeepL's interface: its requests and responses, and translations as requests of the server's queue."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from modelscope_polylm.serve.errors import RequestError
from modelscope_polylm.serve.middleware import Figures, set_figures
from modelscope_polylm.serve.requests import ParsedRequest, RequestState
from modelscope_polylm.serve.routes import CLIENT_GONE, unless_gone
from modelscope_polylm.text.languages import LANGUAGES
from modelscope_polylm.translation.translator import TranslationRun, Translator

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import GenerationResult, TextGenerator
    from modelscope_polylm.inputs import Prompt
    from modelscope_polylm.serve.middleware import Metrics
    from modelscope_polylm.serve.queue import RequestQueue

FORM_TYPE = "application/x-www-form-urlencoded"
MAX_TEXTS = 50
"""Of a request, as DeepL has it."""
TOGETHER = 128
"""Sentences that one request has in the queue at once; between them others get their turn."""
TARGETS = {"en": ("EN-GB", "EN-US"), "pt": ("PT-BR", "PT-PT")}
"""Languages of which DeepL's clients only take variants as a target; PolyLM does not tell these apart."""


class TranslateRequest(BaseModel):
    """Texts to translate, with DeepL's fields."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    text: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)] = Field(description="Of any length each.")
    target_lang: str = Field(description="Code or name of one of the 18 languages.")
    source_lang: str | None = Field(default=None, description="The same; detected for each text if not given.")
    show_billed_characters: bool = Field(default=False, description="Also return the length of each text.")
    preserve_formatting: bool = Field(default=True, description="Has no effect: white space stays.")
    split_sentences: Literal["1"] = Field(default="1", description="Lines and sentences are always split.")
    tag_handling: Literal["html", "xml"] | None = Field(default=None, description="Has no effect: tags stay.")
    formality: Literal["default", "prefer_more", "prefer_less"] = Field(
        default="default", description="Has no effect: PolyLM cannot be asked for it."
    )
    model_type: Literal["latency_optimized", "prefer_quality_optimized"] | None = Field(
        default=None, description="Has no effect: there is one model."
    )


class Translation(BaseModel):
    """A text, translated."""

    detected_source_language: str
    text: str
    billed_characters: int | None = Field(default=None, exclude_if=lambda value: value is None)


class TranslateResponse(BaseModel):
    """The translations, in the order of the texts."""

    translations: list[Translation]


class Language(BaseModel):
    """One of the languages."""

    language: str
    name: str
    supports_formality: bool | None = Field(default=None, exclude_if=lambda value: value is None)


class DeepLRefusal(BaseModel):
    """What went wrong."""

    message: str


REQUEST_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": TranslateRequest.model_json_schema()} for kind in ("application/json", FORM_TYPE)},
    }
}


def kind_in_body(body: bytes) -> str:
    """Which languages a request asks for in its body, where DeepL's clients put it; 'source' if in none."""
    return dict(parse_qsl(body.decode(errors="replace"))).get("type", "source")


def languages(kind: str) -> list[Language]:
    """The languages that a text may be in ('source'), or be translated to ('target'). Raises RequestError."""
    if kind not in ("source", "target"):
        raise RequestError(f"type={kind!r:.40} must be 'source' or 'target'.", "type")
    if kind == "source":
        return [Language(language=code.upper(), name=name) for code, name in LANGUAGES.items()]
    codes = [(variant, name) for code, name in LANGUAGES.items() for variant in TARGETS.get(code, (code.upper(),))]
    return [Language(language=code, name=name, supports_formality=False) for code, name in codes]


@dataclass(frozen=True)
class Translations:
    """Translates for the server.

    Attributes:
        generator: the loaded model.
        queue: runs the requests.
        metrics: are kept up to date.
        defaults: generation options of the server, over those of a translation.
    """

    generator: TextGenerator
    queue: RequestQueue
    metrics: Metrics
    defaults: Mapping[str, Any]

    async def answer(self, http: Request) -> Response:
        """Answer a request with JSON or a form.

        Raises:
            RequestError, RequestValidationError, InputError, OptionError: it cannot be done, and why.
            BusyError, EndingError: as the queue.
        """
        try:
            body = await http.body()
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        request = _parsed(body, http.headers.get("content-type", ""))
        translator, run = await asyncio.to_thread(self._begun, request)
        states: list[RequestState] = []
        set_figures(http.scope, functools.partial(_figures, states))
        while requests := await asyncio.to_thread(run.requests):
            results: list[GenerationResult] = []
            for first in range(0, len(requests), TOGETHER):
                part = requests[first : first + TOGETHER]
                state = self.queue.submit(_as_parsed(part))
                states.append(state)
                self.metrics.prompt_tokens.inc(state.request.prompt_tokens)
                try:
                    if not await unless_gone(http, state.until_complete()):
                        return Response(status_code=CLIENT_GONE)
                finally:
                    self.queue.leave(state)
                pairs = zip(part, state.completions, strict=True)
                results += [translator.generator.result(prompt, found) for (prompt, _), found in pairs]
            run.take(results)
        return Response(_response(run, request).model_dump_json(), media_type="application/json")

    def _begun(self, request: TranslateRequest) -> tuple[Translator, TranslationRun]:
        beams = {"num_beams": self.queue.max_rows} if self.queue.max_rows < 4 else {}
        translator = Translator(self.generator, {**beams, **self.defaults})
        return translator, TranslationRun(
            translator, translator.split_all(request.text, request.target_lang, request.source_lang)
        )


def _parsed(body: bytes, content_type: str) -> TranslateRequest:
    """The request in a body of JSON or of a form."""
    try:
        is_form = content_type.partition(";")[0].strip().lower() == FORM_TYPE
        values = _form_values(body) if is_form else json.loads(body)
    except ValueError:
        raise RequestError("The body is not valid JSON." if not is_form else "The body is not a valid form.") from None
    if not isinstance(values, dict):
        raise RequestError('The body must be a JSON object, such as {"text": ["Hello"], "target_lang": "DE"}.')
    try:
        request = TranslateRequest.model_validate(values)
    except ValidationError as error:
        problems = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(problems, body=values) from error
    if unknown := next(iter(request.model_extra or {}), None):
        raise RequestError(f"{unknown:.80} is not supported: leave it out.", unknown[:80])
    return request


def _form_values(body: bytes) -> dict[str, Any]:
    """The fields of a form, which has all of them as texts."""
    pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True)
    flags = {"1": True, "true": True, "0": False, "false": False}
    values: dict[str, Any] = {name: value for name, value in pairs if name != "text"}
    for name in ("show_billed_characters", "preserve_formatting"):
        if name in values:
            values[name] = flags.get(values[name], values[name])
    return {**values, "text": [value for name, value in pairs if name == "text"]}


def _as_parsed(requests: Sequence[tuple[Prompt, GenerationOptions]]) -> ParsedRequest:
    return ParsedRequest([prompt for prompt, _ in requests], [options for _, options in requests], scored=True)


def _response(run: TranslationRun, request: TranslateRequest) -> TranslateResponse:
    shows = request.show_billed_characters
    return TranslateResponse(
        translations=[
            Translation(
                detected_source_language=found.source.upper(),
                text=found.text,
                billed_characters=len(text) if shows else None,
            )
            for text, found in zip(request.text, run.translations(), strict=True)
        ]
    )


def _figures(states: Sequence[RequestState]) -> Figures:
    prompts = sum(state.request.prompt_tokens for state in states)
    return Figures(prompts, sum(state.generated for state in states), None)
