"""From a row to what the model is asked: its text, its messages, or a template filled with its columns."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.errors import InputError, OptionError

PLACE = re.compile(r"\{(\w+)\}")
TEXT = "text"


@dataclass(frozen=True)
class Question:
    """Makes the input for the model.

    Attributes:
        column: the column or key with the text; 'text' if None.
        template: a text with places such as {text} and {title}; {text} is the row's text.
    """

    column: str | None = None
    template: str | None = None

    def check_columns(self, known: Collection[str] | None) -> None:
        """Raise OptionError for a column that a file with a header lacks; `known` is None for other files."""
        if self.template is not None and not PLACE.search(self.template):
            raise OptionError(f"template={self.template!r} has no place for the text: write {{text}} where it goes.")
        if known is None:
            return
        for name in self._columns():
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(map(repr, known))}."
                raise OptionError(f"The file has no column {name!r}: {hint}")

    def of(self, value: Any) -> Any:
        """The input for a row's value: a text, or `{'messages': ...}`. Raises InputError."""
        if isinstance(value, dict) and "messages" in value and self.column is None and self.template is None:
            return {"messages": value["messages"]}
        if not isinstance(value, (str, dict)):
            raise InputError(f"A row must be a text or an object, not {value!r:.80}.")
        if self.template is None:
            return self._field(value, TEXT)
        return PLACE.sub(lambda place: _as_text(self._field(value, place[1])), self.template)

    def _columns(self) -> list[str]:
        named = PLACE.findall(self.template) if self.template is not None else [TEXT]
        return [self.column or TEXT if name == TEXT else name for name in named]

    def _field(self, value: str | dict[str, Any], name: str) -> Any:
        if isinstance(value, str):
            if name == TEXT:
                return value
            raise InputError(f"The row is a text and has no {name!r}.")
        key = self.column or TEXT if name == TEXT else name
        if key not in value:
            raise InputError(f"The row has no {key!r}; it has {', '.join(map(repr, value)) or 'nothing'}.")
        return value[key]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
