"""Refusals in the form of OpenAI's interface, which its clients show to people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of a refusal: `{"error": {"message", "type", "param", "code"}}`.

    Args:
        status: the HTTP status, which decides the type.
        message: what was wrong, and what to do.
        param: the field of the request that it is about.
        code: OpenAI's name for the problem, where it has one.
    """
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A refusal as a response; the arguments are those of `error_body`, and further headers."""
    return JSONResponse(error_body(status, message, param, code), status, dict(headers or {}))
