"""Fields of a request made from the declared generation options: name, type, bounds and description are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field as OptionField
from typing import Annotated, Any, Literal

from pydantic import Field

from modelscope_polylm.generation.options import option_fields

LARGEST = 2**31 - 1
"""No number of a request but a seed may be larger, or smaller than its opposite: devices compute with bounded ones."""
MOST_TEXTS = 64
MOST_TOKENS = 64
"""Of a word that is forbidden, and of end tokens."""
SAME_IN_OPENAI = ("temperature", "top_p", "seed")
RENAMED = {"output_logprobs": "logprobs", "stop_strings": "stop"}
"""PolyLM's options that OpenAI's interface has under another name."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Token = Annotated[int, Field(ge=0, le=LARGEST)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Word = Annotated[list[Token], Field(min_length=1, max_length=MOST_TOKENS)]


def option_types() -> dict[str, Any]:
    """A field for each generation option that OpenAI's interface lacks, as `pydantic.create_model` takes them."""
    left_out = {*SAME_IN_OPENAI, *RENAMED}
    return {
        field.name: (_type(field) | None, Field(default=None, description=field.metadata["help"]))
        for field in option_fields()
        if field.name not in left_out
    }


def _type(field: OptionField[Any]) -> Any:
    metadata = field.metadata
    if "choices" in metadata:
        return Literal[tuple(metadata["choices"])]
    if metadata.get("nested"):
        return Annotated[list[Word], Field(max_length=MOST_TEXTS)]
    if metadata.get("token"):
        return Token | Word
    name = str(field.type).split(" ")[0]
    return bool if name == "bool" else Annotated[{"int": int, "float": float}[name], _bounds(metadata)]


def _bounds(metadata: Mapping[str, Any]) -> Any:
    above = metadata.get("above")
    smallest = metadata.get("minimum", -LARGEST if above is None else None)
    return Field(ge=smallest, le=metadata.get("maximum", LARGEST), gt=above)
