"""The ASGI application: OpenAI's paths, health and metrics, and errors in OpenAI's form.

It stands on FastAPI and uvicorn; docs/contributing.md says why, and not on LitServe.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

import modelscope_polylm
from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.serve import responses
from modelscope_polylm.serve.errors import Failure, RequestError, failure, failure_of
from modelscope_polylm.serve.middleware import Gate
from modelscope_polylm.serve.parsing import RequestReader
from modelscope_polylm.serve.responses import ChatFormat, TextFormat
from modelscope_polylm.serve.routes import Service
from modelscope_polylm.serve.schemas import ChatRequest, CompletionRequest

SHOWN_PROBLEMS = 3
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": responses.ErrorResponse, "description": "The request cannot be done; the message says why."},
    "5XX": {"model": responses.ErrorResponse, "description": "The server cannot do it now."},
}
STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


def application(service: Service, reader: RequestReader, card: responses.ModelCard, key: str | None, body: int) -> Gate:
    """The server as an ASGI application.

    Args:
        service, reader: run and read requests.
        card: describes the model.
        key: the API key; None lets every client of this machine in.
        body: most bytes of a request's body.
    """
    app = FastAPI(
        title="PolyLM", version=modelscope_polylm.__version__, docs_url=None, redoc_url=None, responses=REFUSALS
    )
    _add_failures(app)
    secured = [Security(HTTPBearer(auto_error=False))] if key is not None else []  # the gate does it; this documents it
    _add_state(app, service)
    _add_models(app, service, card, secured)
    _add_answers(app, service, reader, secured)
    _name_model(app.openapi(), service.names)
    return Gate(app, service.metrics, key, body)


def _add_answers(app: FastAPI, service: Service, reader: RequestReader, secured: list[Any]) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=responses.ChatResponse,
        responses={200: {"content": STREAM}},
        dependencies=secured,
    )
    async def chat(http: Request, request: ChatRequest) -> Response:
        """Answer a conversation."""
        return await service.answer(http, request, reader.read_chat, ChatFormat)

    @app.post(
        "/v1/completions",
        response_model=responses.TextResponse,
        responses={200: {"content": STREAM}},
        dependencies=secured,
    )
    async def completions(http: Request, request: CompletionRequest) -> Response:
        """Continue texts."""
        return await service.answer(http, request, reader.read_completion, TextFormat)


def _add_models(app: FastAPI, service: Service, card: responses.ModelCard, secured: list[Any]) -> None:
    @app.get("/v1/models", dependencies=secured)
    async def models() -> responses.ModelList:
        """The model that is served."""
        return responses.ModelList(data=[card])

    @app.get("/v1/models/{name:path}", dependencies=secured)
    async def model(name: str) -> responses.ModelCard:
        """The model that is served, by one of its names."""
        service.check_model(name)
        return card


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> responses.Health:
        """Whether the server takes requests; 503 when it is about to end."""
        if service.scheduler.is_ending:
            raise HTTPException(503, "The server is shutting down.")
        return responses.Health(status="ok")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {"messages": [{"role": "user", "content": "Rome is the capital of Italy."}], "max_tokens": 16},
    "CompletionRequest": {"prompt": "Rome is", "max_tokens": 16},
}


def _name_model(document: dict[str, Any], names: tuple[str, ...]) -> None:
    """Write the model's names and examples into the OpenAPI document, which the application keeps."""
    for request, example in EXAMPLES.items():
        schema = document["components"]["schemas"][request]
        schema["properties"]["model"]["enum"] = list(names)
        schema["examples"] = [{"model": names[0], **example}]
    document["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["schema"]["enum"] = list(names)


def _add_failures(app: FastAPI) -> None:
    async def answer(_: Request, error: Exception) -> Response:
        return _response(failure_of(error))

    async def answer_malformed(http: Request, error: RequestValidationError) -> Response:
        if http.method == "POST" and "json" not in http.headers.get("content-type", ""):
            return _response(failure(415, "The body has to be JSON: send the header Content-Type: application/json."))
        return _response(_malformed(error))

    for kind in (RequestError, PolyLMError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, answer_malformed)  # type: ignore[arg-type]


def _response(refusal: Failure) -> Response:
    return JSONResponse(refusal.body, refusal.status, dict(refusal.headers))


def _malformed(error: RequestValidationError) -> Failure:
    """One line for a body that is no JSON or has wrong fields, without the values, which may be large."""
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return failure(400, "The body is not valid JSON.")
    places = [".".join(map(str, problem["loc"][1:])) or "body" for problem in problems]
    lines = [f"{place[:200]}: {problem['msg']}" for place, problem in zip(places, problems, strict=True)]
    more = f" And {len(lines) - SHOWN_PROBLEMS} more." if len(lines) > SHOWN_PROBLEMS else ""
    param = str(problems[0]["loc"][1])[:80] if len(problems[0]["loc"]) > 1 else None
    return failure(400, ". ".join(lines[:SHOWN_PROBLEMS]) + "." + more, param)
