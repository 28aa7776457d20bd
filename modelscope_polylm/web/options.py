"""Generation options on a web page: each component is made from the option's own declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import option_fields
from modelscope_polylm.web.words import Words

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

NOT_SHOWN = frozenset(
    {"num_return_sequences", "output_scores", "output_logprobs", "bad_words_ids", "eos_token_id", "pad_token_id"}
)
"""Options of programs: they report more than one text, or are written in token ids."""
FIRST = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "seed")
"""The options that most people want; the others come after them."""
UNSET = "(unset)"
PLAIN_NAMES = {
    "max_new_tokens": "Longest answer",
    "do_sample": "Draw at random",
    "temperature": "Temperature",
    "top_p": "Share of likely tokens",
    "top_k": "Number of likely tokens",
    "num_beams": "Width of the search",
    "repetition_penalty": "Avoid repetition",
    "seed": "Random seed",
    "max_length": "Longest prompt and answer",
    "min_new_tokens": "Shortest answer",
    "min_length": "Shortest prompt and answer",
    "early_stopping": "End of the search",
    "length_penalty": "Favour length",
    "min_p": "Least probability",
    "typical_p": "Typical share",
    "no_repeat_ngram_size": "No sequence twice",
    "stop_strings": "Stop at these texts",
    "beam_rules": "Rules of the search",
}
"""What people call an option; its own name is in its help. Options without one go by their own."""


def shown_fields() -> list[Field[Any]]:
    """The options of the page, the most wanted first."""
    fields = {field.name: field for field in option_fields() if field.name not in NOT_SHOWN}
    return [*(fields.pop(name) for name in FIRST), *fields.values()]


def starting_values(generator: TextGenerator) -> dict[str, Any]:
    """What the page's options start from: the model's own defaults, but a search whose answers can be streamed."""
    options = generator.options({"num_beams": 1, "do_sample": bool(generator.snapshot.generation.get("do_sample"))})
    return {field.name: getattr(options, field.name) for field in shown_fields()}


def read_values(values: Sequence[Any]) -> dict[str, Any]:
    """The options as chosen on the page, in the order of `shown_fields`; those left empty are not among them."""
    given = {field.name: _read(field, value) for field, value in zip(shown_fields(), values, strict=True)}
    return {name: value for name, value in given.items() if value is not None}


def _read(field: Field[Any], value: Any) -> Any:
    if value in (None, "", UNSET):
        return None
    if _is_texts(field):
        return [line for line in str(value).splitlines() if line] or None
    if isinstance(value, str) and _is_number(field):
        return _number(field, value)
    # a browser has one kind of number
    return int(value) if isinstance(value, float) and value.is_integer() and _is_whole(field) else value


def _number(field: Field[Any], text: str) -> float | None:
    kind = int if _is_whole(field) else float
    try:
        return kind(text) if text.strip() else None
    except ValueError:
        raise OptionError(f"{field.name}={text!r} must be a {'whole ' * _is_whole(field)}number, or empty.") from None


def components(values: Mapping[str, Any], words: Words) -> list[Any]:
    """A gradio component for each of `shown_fields`, in the context of the caller's layout.

    Args:
        values: what they start from, by name.
        words: the page's language.
    """
    return [_component(field, values[field.name], words) for field in shown_fields()]


def _component(field: Field[Any], value: Any, words: Words) -> Any:
    import gradio

    metadata, step = field.metadata, 1 if _is_whole(field) else 0.05
    more = f"{words('One a line.')} " if _is_texts(field) else ""
    common: dict[str, Any] = {
        "label": words(PLAIN_NAMES.get(field.name, field.name)),
        "info": f"{words(metadata['help'])} {more}({field.name})",
        "elem_id": f"option-{field.name}",
    }
    if "choices" in metadata:
        unset: list[Any] = [] if field.default is not None else [(words(UNSET), UNSET)]
        choices: list[Any] = [*unset, *((str(choice), choice) for choice in metadata["choices"])]
        return gradio.Dropdown(choices, value=UNSET if value is None else value, **common)
    if _is_texts(field):
        return gradio.Textbox(value=_lines(value), lines=2, **common)
    if str(field.type) == "bool":
        return gradio.Checkbox(value=value, **common)
    if field.default is None:  # a number box cannot be empty
        shown = "" if value is None else str(value)
        return gradio.Textbox(value=shown, placeholder=words("unset"), max_lines=1, **common)
    if "minimum" in metadata and "maximum" in metadata:
        return gradio.Slider(metadata["minimum"], metadata["maximum"], value=value, step=step, buttons=[], **common)
    return gradio.Number(value=value, step=step, precision=0 if step == 1 else None, **common)


def _is_texts(field: Field[Any]) -> bool:
    return str(field.type).startswith("str") and "list" in str(field.type)


def _is_number(field: Field[Any]) -> bool:
    return str(field.type).startswith(("int", "float"))


def _is_whole(field: Field[Any]) -> bool:
    return str(field.type).startswith("int")


def _lines(value: str | Sequence[str] | None) -> str:
    return value if isinstance(value, str) else "\n".join(value or ())
