"""OpenAI's batch files: each row is a request with options of its own, and gets a response under its `custom_id`.

Source: OpenAI's Batch API, the objects "request input" and "request output".
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.cli.batch.requests import RowRequest
from modelscope_polylm.errors import ContextLengthError, DeviceError, InputError, OptionError, PolyLMError, suggestion
from modelscope_polylm.openai_requests import (
    FINISH_REASONS,
    OPTIONS_BY_FIELD,
    OWN_OPTIONS,
    SAME_NAMES,
    generation_options,
    unsupported_field,
)

if TYPE_CHECKING:
    from modelscope_polylm.cli.batch.requests import Outcome, RowAnswers
    from modelscope_polylm.cli.batch.rows import Row

CHAT, COMPLETION = URLS = ("/v1/chat/completions", "/v1/completions")
ROW_KEYS = ("custom_id", "method", "url", "body")
SHARED_FIELDS = frozenset({"model", "user", "stream", *SAME_NAMES, *OPTIONS_BY_FIELD, *OWN_OPTIONS})
FIELDS = {CHAT: SHARED_FIELDS | {"messages", "allow_role_markers"}, COMPLETION: SHARED_FIELDS | {"prompt", "echo"}}
NEUTRAL = (None, False)
UNAVAILABLE = ("stream", "stream_options", "logprobs", "top_logprobs", "best_of", "output_scores")
"""Fields that only the server has."""


def is_request(value: Any) -> bool:
    """Whether a row is a request of an OpenAI batch file."""
    return isinstance(value, dict) and {"custom_id", "body"} <= set(value)


@dataclass(frozen=True)
class OpenAIBatch:
    """Reads requests and writes responses.

    Attributes:
        models: what requests may call the loaded model; the first is its name.
    """

    models: Sequence[str]

    def read(self, value: Any) -> RowRequest:
        """The request of a row. Raises InputError."""
        body = _checked_body(value)
        model = body.get("model")
        if model is not None and model not in self.models:
            raise InputError(f"The model {model!r:.80} is not loaded: {suggestion(model, self.models, 'it is called')}")
        prompt = {"messages": _messages(body)} if value["url"] == CHAT else _prompt(body)
        markers = body.get("allow_role_markers") or False
        if not isinstance(markers, bool):
            raise InputError(f"allow_role_markers={markers!r:.80} must be true or false.")
        try:
            options = generation_options(body)
        except OptionError as error:
            raise InputError(str(error)) from error
        # clients of OpenAI's interface send system messages as a matter of course
        return RowRequest(prompt, options=options, allow_role_markers=markers, system_message="prepend")

    def response(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        """The row of the output file. The number of a row is its id, so that a continued run goes on with it."""
        value = row.value if isinstance(row.value, dict) else {}
        if isinstance(outcome, PolyLMError):
            status, body = 503 if isinstance(outcome, DeviceError) else 400, _error_body(outcome)
        else:
            status, body = 200, self._body(row, outcome)
        response = {"status_code": status, "request_id": f"req_{row.number}", "body": body}
        return {
            "id": f"batch_req_{row.number}",
            "custom_id": value.get("custom_id"),
            "response": response,
            "error": None,
        }

    def _body(self, row: Row, answers: RowAnswers) -> dict[str, Any]:
        body, is_chat, result = row.value["body"], row.value["url"] == CHAT, answers.result
        echoed = result.prompt_text if body.get("echo") else ""
        choices = []
        for index, (text, completion) in enumerate(zip(result.texts, result.completions, strict=True)):
            kept = _before_stop(text, body.get("stop"))
            content = {"message": {"role": "assistant", "content": kept}} if is_chat else {"text": echoed + kept}
            reason = "stop" if kept != text else FINISH_REASONS[completion.finish_reason]
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": reason})
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{row.number}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": body.get("model") or self.models[0],
            "choices": choices,
            "usage": _usage(answers),
        }


def _checked_body(value: Any) -> dict[str, Any]:
    if not is_request(value):
        raise InputError(f"The row is no request: it needs {', '.join(map(repr, ROW_KEYS))}.")
    unknown = [key for key in value if key not in ROW_KEYS]
    if unknown:
        raise InputError(f"The row has {unknown[0]!r}: {suggestion(unknown[0], ROW_KEYS, 'a request has')}")
    body, url = value["body"], value.get("url")
    if not isinstance(value["custom_id"], str) or not isinstance(body, dict):
        raise InputError("'custom_id' must be a text and 'body' an object.")
    if value.get("method") != "POST":
        raise InputError(f"The method {value.get('method')!r:.80} is unknown: use 'POST'.")
    if url not in URLS:
        raise InputError(f"The url {url!r:.80} is unknown: {suggestion(url, URLS)}")
    for name in UNAVAILABLE:
        if body.get(name) not in NEUTRAL:
            raise InputError(f"{name} is not supported in files of requests: leave it out, or use `polylm serve`.")
    extra = {name: field for name, field in body.items() if name not in (*FIELDS[url], *UNAVAILABLE)}
    if (unsupported := unsupported_field(extra, FIELDS[url])) is not None:
        raise InputError(unsupported[1])
    return body


def _messages(body: Mapping[str, Any]) -> Any:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return messages
    return [
        {**message, "content": _content(message.get("content"))} if isinstance(message, dict) else message
        for message in messages
    ]


def _content(content: Any) -> Any:
    """The text of a content, which may come in parts."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InputError(f"A message has the part {part!r:.80}, but PolyLM reads text alone.")
    return "".join(part["text"] for part in content)


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InputError(f"'prompt' must be one text, not {prompt!r:.80}: write a row for each prompt.")
    return prompt


def _before_stop(text: str, stop: str | Sequence[str] | None) -> str:
    """The text up to the first stop string, which OpenAI's answers do not contain."""
    stops = [stop] if isinstance(stop, str) else stop or ()
    return text[: min((text.index(each) for each in stops if each in text), default=len(text))]


def _usage(answers: RowAnswers) -> dict[str, int]:
    prompt = len(answers.prompt.ids)
    return {"prompt_tokens": prompt, "completion_tokens": answers.tokens, "total_tokens": prompt + answers.tokens}


def _error_body(error: PolyLMError) -> dict[str, Any]:
    kind = "server_error" if isinstance(error, DeviceError) else "invalid_request_error"
    code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}
