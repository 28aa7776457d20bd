"""What goes wrong with a request, and what its client is told: a status and OpenAI's form, in plain words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from modelscope_polylm.errors import ContextLengthError, DeviceError, InputError, OptionError, PolyLMError
from modelscope_polylm.http.middleware import error_body, error_response

DEEPL_ROOT = "/v2/"
UNEXPECTED = "Something went wrong on the server, and its log tells what."
MAX_PROBLEMS = 3
"""A refusal names so many of the fields that are wrong."""
MAX_VALUE = 40
"""Characters of a wrong value that a refusal repeats."""
REQUIREMENTS = {
    "string_type": "a text",
    "string_unicode": "a text of valid Unicode",
    "string_too_short": "a text of at least {min_length} character(s)",
    "string_too_long": "a text of at most {max_length} characters",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "list_type": "a list",
    "too_short": "a list of at least {min_length} item(s)",
    "too_long": "a list of at most {max_length} items",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""pydantic's kinds of problems: what a value has to be."""


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


class Refusal(NamedTuple):
    """What a client is told."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        return error_body(self.status, self.message, self.param, self.code)

    def response_for(self, path: str) -> Response:
        """The whole response to a request of a path, in OpenAI's form or in DeepL's."""
        if not path.startswith(DEEPL_ROOT):
            return error_response(*self)
        status = 403 if self.status == 401 else self.status  # the one that DeepL's clients take for a wrong key
        return JSONResponse({"message": self.message}, status, dict(self.headers or {}))


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error; what is not meant for people stays on the server."""
    if isinstance(error, RequestError):
        return Refusal(error.status, str(error), error.param, error.code, error.headers)
    if isinstance(error, RequestValidationError):
        return _refusal_of_fields(error)
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, ContextLengthError):
        return Refusal(400, str(error), code="context_length_exceeded")
    if isinstance(error, (InputError, OptionError)):
        return Refusal(400, str(error))
    if isinstance(error, DeviceError):
        return Refusal(503, str(error), code="device_error")
    return Refusal(500, str(error) if isinstance(error, PolyLMError) else UNEXPECTED)


def _refusal_of_fields(error: RequestValidationError) -> Refusal:
    problems: Sequence[Mapping[str, Any]] = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return Refusal(400, "The body is not valid JSON.")
    paths = [_path(problem, error.body) for problem in problems]
    if () in paths:
        return Refusal(400, 'The body must be a JSON object, such as {"model": ..., "messages": [...]}.')
    # where a value may be a text or a list, the list's own problem tells more than that it is no text
    kept = [
        (path, problem)
        for path, problem in zip(paths, problems, strict=True)
        if not any(other[: len(path)] == path for other in paths if len(other) > len(path))
    ]
    grouped = [
        _sentence(path, [problem for _, problem in group])
        for path, group in itertools.groupby(kept, key=lambda each: each[0])
    ]
    more = [f"And {len(grouped) - MAX_PROBLEMS} more."] if len(grouped) > MAX_PROBLEMS else []
    return Refusal(400, " ".join([*grouped[:MAX_PROBLEMS], *more]), str(kept[0][0][0])[:80])


def _path(problem: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """Where in the body a problem is; pydantic's own names for the alternatives of a field are left out."""
    path: list[str | int] = []
    for part in problem["loc"][1:]:
        is_index = isinstance(body, list) and isinstance(part, int) and part < len(body)
        is_key = isinstance(body, Mapping) and part in body
        if is_index or is_key:
            body = body[part]
        if is_index or is_key or problem["type"] == "missing":
            path.append(part)
    return tuple(path)


def _sentence(path: Sequence[str | int], problems: Sequence[Mapping[str, Any]]) -> str:
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")[:200]
    if problems[0]["type"] == "missing":
        return f"{name} is missing."
    if problems[0]["type"] == "extra_forbidden":
        return f"{name} is unknown: leave it out."
    requirements = [REQUIREMENTS.get(problem["type"], "valid").format(**problem.get("ctx", {})) for problem in problems]
    return f"{name}{_value(problems[0].get('input'))} must be {' or '.join(dict.fromkeys(requirements))}."


def _value(value: Any) -> str:
    """A small value, to be repeated; nothing of a large one."""
    text = repr(value) if isinstance(value, (str, int, float)) else ""
    return f"={text}" if 0 < len(text) <= MAX_VALUE else ""
