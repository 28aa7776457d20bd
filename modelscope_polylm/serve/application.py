"""The ASGI application: OpenAI's paths, health, version and metrics, each refusal in OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import modelscope_polylm
from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.http.middleware import BodyMiddleware, HostMiddleware
from modelscope_polylm.serve import responses
from modelscope_polylm.serve.errors import Refusal, RequestError, refusal_of
from modelscope_polylm.serve.middleware import Access, KeyMiddleware, RequestLog
from modelscope_polylm.serve.parsing import RequestReader
from modelscope_polylm.serve.responses import ChatFormat, ModelCard, TextFormat
from modelscope_polylm.serve.routes import NOTE_HEADER, ServedModel
from modelscope_polylm.serve.schemas import ChatRequest, CompletionRequest

ROOT = "/v1"
CHAT, COMPLETIONS, MODELS = f"{ROOT}/chat/completions", f"{ROOT}/completions", f"{ROOT}/models"
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": responses.ErrorResponse, "description": "The request cannot be done; the message says why."},
    "5XX": {"model": responses.ErrorResponse, "description": "The server cannot do it now."},
}
STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {"messages": [{"role": "user", "content": "Rome is the capital of Italy."}], "max_tokens": 16},
    "CompletionRequest": {"prompt": "Rome is", "max_tokens": 16},
}
HOST_HINT = "Start it with --api-key to serve other names, or with --cors-origin ORIGIN to serve a page's."
EXPOSED_HEADERS = ("X-Request-Id", "Retry-After", NOTE_HEADER)
"""What scripts of other origins may read besides the body."""


def application(model: ServedModel, reader: RequestReader, card: ModelCard, access: Access, max_body: int) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        model, reader: run and read requests.
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
    _name_model(app.openapi(), model.names)
    return RequestLog(_guarded(app, access, max_body), model.metrics)


def _guarded(app: ASGIApp, access: Access, max_body: int) -> ASGIApp:
    app = BodyMiddleware(app, max_body)
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
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            return _refusal_of_path(http, error).response
        return refusal_of(error).response

    for kind in (RequestError, PolyLMError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, refuse)


def _refusal_of_path(http: Request, error: HTTPException) -> Refusal:
    """What to ask in place of a path or a method that does not exist."""
    path, allowed = http.url.path, (error.headers or {}).get("Allow")
    if error.status_code == 405:
        return Refusal(405, f"{path:.200} takes {allowed}, not {http.method}.", headers=error.headers)
    known = next((each for each in (CHAT, COMPLETIONS, MODELS) if path.endswith(each.removeprefix(ROOT))), None)
    hint = f"did you mean {known}?" if known else f"OpenAI's interface begins at {ROOT}, as {ROOT}/chat/completions."
    return Refusal(404, f"There is nothing at {path!r:.200}: {hint}")
