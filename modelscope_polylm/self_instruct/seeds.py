"""Seed tasks: a file of somebody's own, or of Stanford Alpaca's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import InputError, suggestion
from modelscope_polylm.self_instruct.tasks import EXAMPLES, Task
from modelscope_polylm.text.languages import LANGUAGES
from modelscope_polylm.training.layouts import NO_INPUT
from modelscope_polylm.training.rows import read_rows

TEXTS = ("instruction", "input", "output")
OF_ALPACA = ("id", "name", "instances", "is_classification")
KNOWN = (*TEXTS, "language", "keep", *OF_ALPACA)


@dataclass(frozen=True)
class Seed:
    """A task to begin with.

    Attributes:
        task: in its own language.
        language: ISO 639-1 code of that.
        keep: those of 'input' and 'output' that a translation leaves as they are, such as code.
    """

    task: Task
    language: str
    keep: tuple[str, ...] = ()


def read_seeds(path: Path) -> list[Seed]:
    """Read seeds of JSON, JSON lines, CSV or parquet.

    A row has 'instruction', 'output', and perhaps 'input', 'language' ("en" if it is missing) and 'keep', a list of
    fields. A row of Alpaca's `seed_tasks.jsonl`, with 'instances', gives the first of these.

    Raises:
        InputError: the file cannot be read, or a row is no seed: it names the row and what is wrong.
    """
    seeds = [_seed(row, f"Row {number} of {path}") for number, row in enumerate(read_rows(path), start=1)]
    if not seeds:
        raise InputError(f"{path} has no row: it needs seeds, with 'instruction', 'input' and 'output'.")
    return seeds


def seeds_for(seeds: Sequence[Seed], language: str) -> list[Seed]:
    """The seeds of a language, or those in English to translate. Raises InputError for fewer than a prompt shows."""
    own = [seed for seed in seeds if seed.language == language]
    found = own or [seed for seed in seeds if seed.language == "en"]
    if len(found) < EXAMPLES:
        kind = "English" if not own else LANGUAGES[language]
        raise InputError(
            f"The seeds have {len(found)} tasks in {kind}, and {language} needs at least {EXAMPLES} of its own or as "
            "many in English to translate: add some."
        )
    return found


def _seed(row: Any, where: str) -> Seed:
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is no JSON object: a seed has 'instruction', 'input' and 'output'.")
    for name in row:
        if name not in KNOWN:
            raise InputError(f"{where} has {name!r:.80}, which no seed has: {suggestion(name, KNOWN)}")
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], Mapping) else {}
    texts = {name: row.get(name, first.get(name)) for name in TEXTS}
    context = texts["input"] or ""
    for name, value in (("instruction", texts["instruction"]), ("input", context), ("output", texts["output"])):
        if not isinstance(value, str) or (name != "input" and not value.strip()):
            raise InputError(f"{where} has no text as {name!r}: a seed has 'instruction', 'input' and 'output'.")
    language = row.get("language") or "en"
    if language not in LANGUAGES:
        raise InputError(f"{where} has the language {language!r:.80}: {suggestion(language, LANGUAGES)}")
    context = "" if NO_INPUT.fullmatch(context) else context.strip()
    return Seed(Task(texts["instruction"].strip(), context, texts["output"].strip()), language, _kept(row, where))


def _kept(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = row.get("keep") or ()
    if not isinstance(names, (list, tuple)) or any(name not in ("input", "output") for name in names):
        raise InputError(f"{where} has keep={names!r:.80}: it is a list of 'input' and 'output'.")
    return tuple(names)
