"""`polylm data`: published data sets become one file to fine-tune on."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from modelscope_polylm.errors import DownloadError, InputError, OptionError, suggestion
from modelscope_polylm.files import write_atomically
from modelscope_polylm.terminal.flags import JsonFlag
from modelscope_polylm.terminal.output import console, is_terminal, write, write_error

if TYPE_CHECKING:
    from modelscope_polylm.training.prepare import Counts, DataReport, DataSet


def complete_source(incomplete: str) -> list[str]:
    """Names of sources for the shell's completion."""
    from modelscope_polylm.training.sources import SOURCES

    return [f"{name}=" for name in SOURCES if name.startswith(incomplete)]


def data(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="NAME=PATH of each data set, a file or a folder; NAME alone fetches it from ModelScope.",
            autocompletion=complete_source,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="The file to write, JSON lines.")],
    report: Annotated[Path | None, typer.Option(help="Write the counts there, as JSON.")] = None,
    use: Annotated[str, typer.Option(help="What the data are for: research or commercial.")] = "research",
    as_json: JsonFlag = False,
) -> None:
    """Make training data of published data sets.

    Names: the nine of the model card (code_alpaca, dolly, flan_v2, gpt4_alpaca_en, gpt4_alpaca_zh, multilingual_alpaca,
    open_assistant, share_gpt, gpteacher_codegen), and messages, alpaca and text for data of your own. Files are JSON,
    JSON lines, CSV, parquet or text, also compressed (.gz). Prints what was read, kept and left out, and why.
    """
    from modelscope_polylm.training.prepare import Use, prepare_data

    if use not in get_args(Use):
        raise OptionError(f"--use {use!r} is unknown: {suggestion(use, get_args(Use))}")
    data_sets = [parse_data_set(text) for text in sources]
    with row_progress() as progress:
        found = prepare_data(data_sets, out, use, progress)  # type: ignore[arg-type]
    facts = json.dumps(found.to_dict(), ensure_ascii=False, indent=2) + "\n"
    if report is not None:
        write_atomically(report, facts)
    for warning in found.warnings:
        write_error(f"Warning: {warning}")
    write(facts if as_json else render_data_report(found))


def parse_data_set(text: str) -> DataSet:
    """The data set of NAME=PATH, or of a NAME that ModelScope has. Raises InputError."""
    from modelscope_polylm.training.prepare import DataSet
    from modelscope_polylm.training.sources import find_source

    name, separator, path = text.partition("=")
    source = find_source(name)
    if separator:
        return DataSet(source, Path(path))
    if source.hub_id is None:
        raise InputError(f"ModelScope has no known copy of {name}: give its files, {name}=PATH ({source.files}).")
    return DataSet(source, rows=functools.partial(hub_rows, source.hub_id, source.languages))


def hub_rows(dataset_id: str, languages: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Fetch a data set and yield language and row.

    Args:
        dataset_id: owner and name on ModelScope.
        languages: names of its subsets, where each is one language; otherwise the language is "".

    Raises:
        DownloadError: the hub cannot be reached, or has no such data set.
    """
    from modelscope.msdatasets import MsDataset

    for language in languages or ("",):
        subset = {"subset_name": language} if language else {}
        try:
            rows = MsDataset.load(dataset_id, split="train", **subset)
        except Exception as error:  # the client and `datasets` have many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DownloadError(
                f"{dataset_id} cannot be fetched from ModelScope ({reason}): check the connection, or give its files."
            ) from error
        for row in rows:
            yield language, row


@contextlib.contextmanager
def row_progress() -> Iterator[Callable[[str, int], None]]:
    """What to call while rows are read; on a terminal it shows their number."""
    if not is_terminal(sys.stderr):
        yield lambda name, count: None
        return
    with console(stderr=True).status("Reading") as status:
        yield lambda name, count: status.update(f"Reading {name}: {count:,} rows")


def render_data_report(report: DataReport) -> str:
    """A table of sources and languages, then why rows were left out and what was changed."""
    header = ["source", "language", "read", "kept", "left out", "model card", "licence"]
    rows = [_row(report, source, language, counts) for (source, language), counts in report.counts.items()]
    rows.append(["", "", "", f"{report.kept:,}", "", "", ""])
    lines = [aligned(row, [header, *rows], numbers=range(2, 6)) for row in [header, *rows]]
    for title, attribute in (("Left out", "left_out"), ("Noted", "notes")):
        found = [
            f"  {count:>9,}  {source} {language}: {reason}"
            for (source, language), counts in report.counts.items()
            for reason, count in getattr(counts, attribute).most_common()
        ]
        lines += [f"{title}:", *found] if found else []
    return "\n".join(lines) + "\n"


def _row(report: DataReport, source: str, language: str, counts: Counts) -> list[str]:
    from modelscope_polylm.training.sources import SOURCES

    card = SOURCES[source].card_rows
    is_first = next(known for known in report.counts if known[0] == source) == (source, language)
    facts = [f"{card:,}" if card and is_first else "", report.licences[source] if is_first else ""]
    left_out = sum(counts.left_out.values())
    return [source, language, f"{counts.read:,}", f"{counts.kept:,}", f"{left_out:,}", *facts]


def aligned(row: list[str], rows: list[list[str]], numbers: range) -> str:
    """A line of a table: the columns of numbers to the right, texts to the left."""
    widths = [max(len(each[column]) for each in rows) for column in range(len(row))]
    cells = [
        cell.rjust(width) if column in numbers else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
