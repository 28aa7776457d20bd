"""`polylm eval`: the evaluations of PolyLM's paper, or any of lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelscope_polylm.cli.data import aligned
from modelscope_polylm.errors import OptionError
from modelscope_polylm.terminal.flags import (
    AdapterFlag,
    BackendFlag,
    CacheDtypeFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    QuantizationFlag,
    ReleaseFlag,
    RevisionFlag,
)
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.terminal.output import is_terminal, write, write_error

if TYPE_CHECKING:
    from modelscope_polylm.evaluation.harness import Progress


def evaluate(
    *,
    model: ModelFlag = "tiny",
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="xnli, pawsx, xwinograd, xcopa, tydiqa, mtg, wmt20, or tasks of lm-evaluation-harness; commas "
            "separate. All of the paper if unset."
        ),
    ] = None,
    languages: Annotated[
        list[str] | None, typer.Option(help="Codes such as de,th or en-de; the paper's main ones if unset.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the tasks' published files; see the docs.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Answered examples before each question; as in the paper if unset.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many questions of each task.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Ask for answers by messages; so for tuned releases if unset."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all results there, JSON; the same command goes on.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a report there, next to the paper's numbers: .md, or .html with plots.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="FILE FILE", help="Instead compare two files of --out, question by question."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let tasks of lm-evaluation-harness fetch their data.")
    ] = False,
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    quantization: QuantizationFlag = None,
    kv_cache_dtype: CacheDtypeFlag = None,
) -> None:
    """Evaluate a model by the tasks of PolyLM's paper.

    XNLI, PAWS-X, XWinograd, XCOPA, TyDiQA, MTG and WMT20, by the paper's prompts and rules, in lm-evaluation-harness.
    Prints the scores next to the paper's; interrupted with --out, the same command goes on where it was.
    """
    from modelscope_polylm.evaluation.report import check_report, facts, result_table, write_report

    if compare is not None:
        return compare_files(*compare)
    if report is not None:
        check_report(report)
    if not download:
        # nothing is fetched unless asked for; read by `datasets` when it is imported
        os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1")
    from modelscope_polylm.evaluation.run import PAPER, Evaluation

    if data is not None and not data.is_dir():
        raise OptionError(f"--data {data} is no folder: give the one with the tasks' files.")
    loaded = {"dtype": dtype, "backend": backend, "quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
    loaded["adapter"] = str(adapter) if adapter else None
    chosen = split_names(tasks) or [PAPER]
    evaluation = Evaluation(chosen, split_names(languages), shots, limit, chat, data, loaded)
    # a question is answered alike whatever runs next to it, so also after an interruption
    deterministic = True if backend == "native" else None
    generator = load_model(
        model, revision, device, dtype, backend, release, adapter, quantization, kv_cache_dtype, deterministic
    )
    with task_progress() as progress:
        results = evaluation.run(generator, out, progress)
    write(render_table(result_table(results), facts(results)))
    if report is not None:
        write_report(report, results)
    if cut := sum(task.cut for task in results.tasks):
        write_error(f"Warning: {cut:,} prompts were longer than the context, and lost their beginning.")


def compare_files(first: Path, second: Path) -> None:
    """Print what differs between two runs, and how sure that is."""
    from modelscope_polylm.evaluation.report import comparison_table
    from modelscope_polylm.evaluation.results import read_results

    write(render_table(*comparison_table(read_results(first), read_results(second))))


def split_names(given: list[str] | None) -> list[str]:
    """Names that are separated by commas, in one or several flags."""
    return [name.strip() for text in given or () for name in text.split(",") if name.strip()]


@contextlib.contextmanager
def task_progress() -> Iterator[Progress]:
    """What to call as answers come: a bar with the time left on a terminal, a line at the end of a task elsewhere."""
    stream = sys.stderr  # which the harness's own bars do not reach
    if not is_terminal(stream):
        yield lambda name, done, count: print(f"{name}: {done:,} answers", file=stream) if done == count else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:
        bar = bars.add_task("", total=None)
        yield lambda name, done, count: bars.update(bar, description=name, completed=done, total=count)


def render_table(cells: list[list[str]], notes: list[str]) -> str:
    """A table for the terminal, and its notes."""
    rows = [aligned(row, cells, numbers=range(1, len(cells[0]))).rstrip() for row in cells]
    return "\n".join([*rows, "", *notes]) + "\n"
