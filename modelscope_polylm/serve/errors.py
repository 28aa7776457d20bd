"""What goes wrong with a request, in OpenAI's form: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from modelscope_polylm.errors import ContextLengthError, DeviceError, InputError, OptionError, PolyLMError

UNEXPECTED = "Something went wrong on the server, and its log tells what."


class RequestError(Exception):
    """A refusal by the server itself."""

    status = 400
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModelError(RequestError):
    """A model that is not served here."""

    status, code = 404, "model_not_found"


class WrongKeyError(RequestError):
    """A missing or wrong API key."""

    status, code, headers = 401, "invalid_api_key", {"WWW-Authenticate": "Bearer"}


class BusyError(RequestError):
    """The queue is full."""

    status, code = 429, "queue_full"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(min(max(retry_after, 1), 60))}


class EndingError(RequestError):
    """The server is about to end."""

    status, code, headers = 503, "shutting_down", {"Retry-After": "5"}


class UnexpectedError(RequestError):
    """What the server's log tells, and no client."""

    status = 500

    def __init__(self) -> None:
        super().__init__(UNEXPECTED)


class Failure(NamedTuple):
    """A refusal as it is sent."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]


TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def failure(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Failure:
    """A refusal in OpenAI's form."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return Failure(status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers or {})


def failure_of(error: BaseException) -> Failure:
    """What a client is told of an error; what is not meant for people stays on the server."""
    if isinstance(error, RequestError):
        return failure(error.status, str(error), error.param, error.code, error.headers)
    if isinstance(error, HTTPException):
        return failure(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, ContextLengthError):
        return failure(400, str(error), code="context_length_exceeded")
    if isinstance(error, (InputError, OptionError)):
        return failure(400, str(error))
    if isinstance(error, DeviceError):
        return failure(503, str(error), code="device_error")
    return failure(500, str(error) if isinstance(error, PolyLMError) else UNEXPECTED)
