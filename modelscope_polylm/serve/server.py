"""The server on this package's own engine: its routes, what its documentation says of them, and its life."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import modelscope_polylm
from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.http.middleware import BodyMiddleware, HostMiddleware
from modelscope_polylm.http.server import Server, url_of
from modelscope_polylm.serve import responses
from modelscope_polylm.serve.deepl import (
    FORM_TYPE,
    REQUEST_SCHEMA,
    DeepLRefusal,
    Language,
    TranslateResponse,
    Translations,
    kind_in_body,
    languages,
)
from modelscope_polylm.serve.errors import DEEPL_ROOT, Refusal, RequestError, refusal_of
from modelscope_polylm.serve.middleware import (
    LANGUAGES_PATH,
    TRANSLATE_PATH,
    Access,
    KeyMiddleware,
    Metrics,
    RequestLog,
)
from modelscope_polylm.serve.parsing import RequestReader
from modelscope_polylm.serve.queue import RequestQueue
from modelscope_polylm.serve.responses import ChatFormat, ModelCard, TextFormat
from modelscope_polylm.serve.routes import NOTE_HEADER, ServedModel
from modelscope_polylm.serve.schemas import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

ROOT = "/v1"
CHAT, COMPLETIONS, MODELS = f"{ROOT}/chat/completions", f"{ROOT}/completions", f"{ROOT}/models"
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": responses.ErrorResponse, "description": "The request cannot be done; the message says why."},
    "5XX": {"model": responses.ErrorResponse, "description": "The server cannot do it now."},
}
DEEPL = (TRANSLATE_PATH, LANGUAGES_PATH)
STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {"messages": [{"role": "user", "content": "Rome is the capital of Italy."}], "max_tokens": 16},
    "CompletionRequest": {"prompt": "Rome is", "max_tokens": 16},
}
HOST_HINT = "Start it with --api-key to serve other names, or with --cors-origin ORIGIN to serve a page's."
EXPOSED_HEADERS = ("X-Request-Id", "Retry-After", NOTE_HEADER)
"""What scripts of other origins may read besides the body."""


def application(
    model: ServedModel,
    reader: RequestReader,
    translations: Translations,
    card: ModelCard,
    access: Access,
    max_body: int,
) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        model, reader: run and read requests.
        translations: the same for DeepL's interface.
        card: describes the model.
        access: who may ask.
        max_body: bytes that a request's body may have.
    """
    app = FastAPI(
        title="PolyLM", version=modelscope_polylm.__version__, docs_url=None, redoc_url=None, responses=REFUSALS
    )
    _add_refusals(app)
    secured = [Security(HTTPBearer(auto_error=False))] if access.keys else []  # KeyMiddleware asks; this documents it
    _add_state(app, model)
    _add_models(app, model, card, secured)
    _add_answers(app, model, reader, secured)
    _add_translations(app, translations, secured)
    _name_model(app.openapi(), model.names)
    return RequestLog(_guarded(app, access, max_body), model.metrics)


def _guarded(app: ASGIApp, access: Access, max_body: int) -> ASGIApp:
    app = BodyMiddleware(app, max_body, {TRANSLATE_PATH: FORM_TYPE})
    if access.keys or access.metrics_key is not None:
        app = KeyMiddleware(app, access)
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    return app if access.keys else HostMiddleware(app, access.origins, HOST_HINT)


def _add_answers(app: FastAPI, model: ServedModel, reader: RequestReader, secured: list[Any]) -> None:
    @app.post(CHAT, response_model=responses.ChatResponse, responses={200: {"content": STREAM}}, dependencies=secured)
    async def chat(http: Request, request: ChatRequest) -> Response:
        """Answer a conversation."""
        return await model.answer(http, request, reader.read_chat, ChatFormat)

    @app.post(
        COMPLETIONS, response_model=responses.TextResponse, responses={200: {"content": STREAM}}, dependencies=secured
    )
    async def completions(http: Request, request: CompletionRequest) -> Response:
        """Continue texts."""
        return await model.answer(http, request, reader.read_completion, TextFormat)


def _add_translations(app: FastAPI, translations: Translations, secured: list[Any]) -> None:
    refusals: dict[int | str, dict[str, Any]] = {kind: {"model": DeepLRefusal} for kind in ("4XX", "5XX")}

    @app.post(
        TRANSLATE_PATH,
        response_model=TranslateResponse,
        openapi_extra=REQUEST_SCHEMA,
        responses=refusals,
        dependencies=secured,
    )
    async def translate(http: Request) -> Response:
        """Translate texts, as DeepL's interface does."""
        return await translations.answer(http)

    @app.get(LANGUAGES_PATH, responses=refusals, dependencies=secured)
    async def supported_languages(
        http: Request, type: Annotated[str | None, Query(description="source or target.")] = None
    ) -> list[Language]:
        """The languages that a text may be in, or be translated to."""
        return languages(type or kind_in_body(await http.body()))


def _add_models(app: FastAPI, served: ServedModel, card: ModelCard, secured: list[Any]) -> None:
    @app.get(MODELS, dependencies=secured)
    async def models() -> responses.ModelList:
        """The model that is served."""
        return responses.ModelList(data=[card])

    @app.get(f"{MODELS}/{{name:path}}", dependencies=secured)
    async def model(name: str) -> ModelCard:
        """The model that is served, by one of its names."""
        served.check_name(name)
        return card


def _add_state(app: FastAPI, model: ServedModel) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> responses.Health:
        """Whether the server takes requests; 503 when it is about to end."""
        if model.queue.is_ending:
            raise HTTPException(503, "The server is shutting down.")
        return responses.Health(status="ok")

    @app.get("/version")
    async def version() -> responses.Version:
        """The release of this package."""
        return responses.Version(version=modelscope_polylm.__version__)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(model.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _name_model(document: dict[str, Any], names: tuple[str, ...]) -> None:
    """Write the model's names and examples into the OpenAPI document, which the application keeps."""
    for request, example in EXAMPLES.items():
        schema = document["components"]["schemas"][request]
        schema["properties"]["model"]["enum"] = list(names)
        schema["examples"] = [{"model": names[0], **example}]
    document["paths"][f"{MODELS}/{{name}}"]["get"]["parameters"][0]["schema"]["enum"] = list(names)


def _add_refusals(app: FastAPI) -> None:
    async def refuse(http: Request, error: Exception) -> Response:
        is_path = isinstance(error, HTTPException) and error.status_code in (404, 405)
        refusal = _refusal_of_path(http, error) if is_path else refusal_of(error)  # type: ignore[arg-type]
        return refusal.response_for(http.url.path)

    for kind in (RequestError, PolyLMError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, refuse)


def _refusal_of_path(http: Request, error: HTTPException) -> Refusal:
    """What to ask in place of a path or a method that does not exist."""
    path, allowed = http.url.path, (error.headers or {}).get("Allow")
    if error.status_code == 405:
        return Refusal(405, f"{path:.200} takes {allowed}, not {http.method}.", headers=error.headers)
    known = next((each for each in (CHAT, COMPLETIONS, MODELS) if path.endswith(each.removeprefix(ROOT))), None)
    if path.startswith(DEEPL_ROOT):
        return Refusal(404, f"There is nothing at {path!r:.200}: of DeepL's interface there are {' and '.join(DEEPL)}.")
    hint = f"did you mean {known}?" if known else f"OpenAI's interface begins at {ROOT}, as {ROOT}/chat/completions."
    return Refusal(404, f"There is nothing at {path!r:.200}: {hint}")


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        rows: answers and beams that are computed at once.
        queue: requests that may wait.
        body: bytes of a request.
        ending_seconds: how long running requests may take to end when the server ends.
    """

    rows: int = 32
    queue: int = 64
    body: int = 1_000_000
    ending_seconds: int = 120


class NativeServer:
    """Serves one model until it is told to end.

    Args:
        generator: the loaded model.
        names: what requests may call it; the first one is its name.
        access: who may use it; every client of this machine by default.
        limits: what it takes on.
        defaults: generation options that win over the model's own, where a request has none.
        system_message: what becomes of system messages: 'prepend' or 'refuse'.

    Raises:
        OptionError: `defaults` contradict each other.
    """

    def __init__(
        self,
        generator: TextGenerator,
        names: tuple[str, ...],
        access: Access | None = None,
        limits: Limits | None = None,
        defaults: Mapping[str, Any] | None = None,
        system_message: str = "prepend",
    ) -> None:
        self._name = names[0]
        self._limits = limits = limits or Limits()
        self.metrics = metrics = Metrics()
        self.queue = RequestQueue(generator, metrics, limits.rows, limits.queue)
        reader = RequestReader(generator, defaults or {}, limits.rows, system_message)
        card = ModelCard(id=names[0], created=int(time.time()), max_model_len=generator.snapshot.config.max_positions)
        model = ServedModel(names, self.queue, metrics)
        translations = Translations(generator, self.queue, metrics, defaults or {})
        self.app = application(model, reader, translations, card, access or Access(), limits.body)

    def run(self, host: str, port: int) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP; then finish what runs, and refuse what waits."""
        gc.freeze()  # a large body of small lists would have the collector look at all of torch again and again
        url = url_of(host, port) + ROOT
        self.server(host, port, lambda: logger.info("Serving %s at %s; Ctrl-C ends.", self._name, url)).run()
        self.queue.stop()

    def server(self, host: str, port: int, on_ready: Callable[[], None] = lambda: None) -> Server:
        """A uvicorn server for one run."""
        return Server(self.app, host, port, self._limits.ending_seconds, on_ready, self.queue.end)
