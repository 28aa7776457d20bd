"""Options of `polylm self-instruct`: each is described, typed and bounded here, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modelscope_polylm.errors import OptionError, suggestion
from modelscope_polylm.generation.options import checked_value, option


@dataclasses.dataclass(frozen=True)
class SelfInstructOptions:
    """A checked set of options, built with `from_dict`. The defaults are the paper's where it tells them."""

    rounds: int = option(10, "Rounds for each language; a round's prompts show tasks of earlier rounds.", minimum=1)
    prompts: int = option(100, "Prompts of a round.", minimum=1)
    first_prompts: int = option(10, "Prompts of a round that has no tasks of earlier rounds to show.", minimum=1)
    tasks: int = option(17, "Tasks that a prompt asks for.", minimum=1, maximum=100)
    temperature: float = option(1.0, "Of the answers; the paper does not tell its own.", minimum=0.0)
    max_tokens: int | None = option(
        None, "Most tokens of an answer; what the endpoint does by itself if unset.", minimum=1
    )
    concurrency: int = option(8, "Requests that run at once.", minimum=1, maximum=1000)
    timeout: float = option(600.0, "Seconds to wait for an answer.", above=0.0)
    seed: int = option(0, "Of the choice of the tasks that a prompt shows.", minimum=0)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> SelfInstructOptions:
        """Check options; None means "not given". Raises OptionError."""
        fields = {field.name: field for field in self_instruct_fields()}
        for name in given:
            if name not in fields:
                raise OptionError(f"Self-instruct has no option {name!r}: {suggestion(name, fields)}")
        return cls(**{name: checked_value(fields[name], value) for name, value in given.items() if value is not None})


def self_instruct_fields() -> tuple[dataclasses.Field[Any], ...]:
    """The declared options: name, type, default, and metadata with `help` and bounds."""
    return dataclasses.fields(SelfInstructOptions)
