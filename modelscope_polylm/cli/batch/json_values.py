"""JSON as batches read it, strict and without loss of numbers that no float holds; and values as texts."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.inputs import is_conversation
from modelscope_polylm.terminal.output import json_line

SPACES = re.compile(r"\s*")


@dataclass(frozen=True)
class LargeNumber:
    """A number such as 1e400, which no float holds."""

    literal: str

    def __str__(self) -> str:
        return self.literal


def read_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, which NaN is not, either; a key that is there twice; nested too deeply.
    """
    try:
        return _decoder().decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_documents(text: str) -> list[Any]:
    """The rows of a file of JSON values over any number of lines.

    A single array holds the rows, unless it is one conversation; otherwise each value is a row.

    Raises:
        ValueError: as `read_json`.
    """
    values: list[Any] = []
    text, end = text.removeprefix("\ufeff").strip(), 0
    try:
        while end < len(text):
            value, end = _decoder().raw_decode(text, end)
            values.append(value)
            end = SPACES.match(text, end).end()  # type: ignore[union-attr]  # it matches everywhere
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    is_array = len(values) == 1 and isinstance(values[0], list) and not is_conversation(values[0])
    return values[0] if is_array else values


def text_of(value: Any) -> str:
    """A value as a part of a text: texts as they are, what JSON has as JSON, anything else as Python shows it."""
    if isinstance(value, str):
        return value
    is_json = value is None or isinstance(value, (bool, int, float, list, dict))
    return json_line(value).rstrip("\n") if is_json else str(value)


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_float=_number, parse_constant=_refuse_constant, object_pairs_hook=_object)


def _number(literal: str) -> float | LargeNumber:
    value = float(literal)
    return value if math.isfinite(value) else LargeNumber(literal)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value
