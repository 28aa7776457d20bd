"""`polylm self-instruct`: a model behind an endpoint writes training data."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.cli.data import aligned
from modelscope_polylm.errors import EndpointError
from modelscope_polylm.files import write_atomically
from modelscope_polylm.self_instruct.options import self_instruct_fields
from modelscope_polylm.terminal.flags import JsonFlag, takes_options
from modelscope_polylm.terminal.output import console, is_terminal, write, write_error
from modelscope_polylm.text.languages import find_language

if TYPE_CHECKING:
    from modelscope_polylm.self_instruct.rounds import Outcome, Progress


@takes_options(self_instruct_fields())
def self_instruct(
    *,
    endpoint: Annotated[
        str,
        typer.Option(help="Base URL of an OpenAI-compatible server, which mostly ends in /v1; key: OPENAI_API_KEY."),
    ],
    endpoint_model: Annotated[str, typer.Option("--model", help="The model's name there.")],
    seeds: Annotated[
        Path, typer.Option(help="Tasks to begin with: instruction, input, output; perhaps language, keep.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write, JSON lines; OUT.journal.jsonl tells of each prompt.")],
    languages: Annotated[
        list[str] | None,
        typer.Option(help="Codes or names such as de,thai; may be repeated. The eleven of MultiAlpaca if unset."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the counts there, as JSON.")] = None,
    as_json: JsonFlag = False,
    options: dict[str, Any],
) -> None:
    """Let a model write instructions and answers.

    In many languages: translates the seeds, asks for more tasks like them in rounds, and keeps what passes the
    filters: the method of
    MultiAlpaca (section 4 of PolyLM's paper). The same command goes on after an interruption. Prints what was kept and
    dropped, and why; `polylm data alpaca=OUT` reads the tasks.
    """
    import asyncio

    from modelscope_polylm.self_instruct.options import SelfInstructOptions
    from modelscope_polylm.self_instruct.rounds import Job, self_instruct

    checked = SelfInstructOptions.from_dict(options)
    job = Job(endpoint, endpoint_model, parse_languages(languages or []), seeds, out, checked)
    with round_progress() as show:
        outcome = asyncio.run(self_instruct(job, show))
    for warning in outcome.warnings:
        write_error(f"Warning: {warning}")
    facts = {language: counts.to_dict() for language, counts in outcome.counts.items()}
    text = json.dumps(facts, ensure_ascii=False, indent=2) + "\n"
    if report is not None:
        write_atomically(report, text)
    write(text if as_json else render_outcome(outcome))
    if not outcome.kept:
        raise EndpointError(f"No task was kept: {job.journal} has what the model answered.")


def parse_languages(given: Sequence[str]) -> list[str]:
    """Codes of languages that are separated by commas; MultiAlpaca's if there are none. Raises InputError."""
    from modelscope_polylm.training.sources import MULTIALPACA_LANGUAGES

    codes = [find_language(name) for text in given for name in text.split(",") if name.strip()]
    return list(dict.fromkeys(codes or MULTIALPACA_LANGUAGES))


@contextlib.contextmanager
def round_progress() -> Iterator[Callable[[Progress], None]]:
    """What to call after each answer: a line that changes on a terminal, a line at the end of a round elsewhere."""
    if not is_terminal(sys.stderr):
        yield lambda progress: write_error(progress_line(progress)) if progress.answers == progress.prompts else None
        return
    with console(stderr=True).status("Asking") as status:
        yield lambda progress: status.update(progress_line(progress))


def progress_line(progress: Progress) -> str:
    """'de, round 2: 14/100 answers, 312 tasks'."""
    answers = f"{progress.answers}/{progress.prompts}"
    if not progress.round:
        return f"{progress.language}: {answers} seeds translated"
    return f"{progress.language}, round {progress.round}: {answers} answers, {progress.kept:,} tasks"


def render_outcome(outcome: Outcome) -> str:
    """A table of languages, then why tasks and translations of seeds were dropped."""
    rows = [["language", "answers", "tasks read", "kept", "dropped", "input emptied"]]
    reasons = []
    for language, counts in outcome.counts.items():
        dropped = sum(counts.dropped.values())
        numbers = (counts.prompts, counts.kept + dropped, counts.kept, dropped, counts.emptied)
        rows.append([language, *(f"{number:,}" for number in numbers)])
        reasons += [f"  {count:>9,}  {language}: {reason}" for reason, count in counts.dropped.most_common()]
        reasons += [
            f"  {count:>9,}  {language}, seed: {reason}" for reason, count in counts.seeds_dropped.most_common()
        ]
    lines = [aligned(row, rows, numbers=range(1, 6)) for row in rows]
    return "\n".join([*lines, *(["Dropped:", *reasons] if reasons else [])]) + "\n"
