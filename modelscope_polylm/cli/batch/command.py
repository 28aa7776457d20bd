"""`polylm batch`: a file of inputs in, a file of answers out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from modelscope_polylm.errors import OptionError
from modelscope_polylm.terminal.errors import INTERRUPTED
from modelscope_polylm.terminal.flags import (
    BackendFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    RevisionFlag,
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.terminal.output import is_terminal, write, write_error


@takes_generation_options
def batch(
    *,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help=".jsonl (texts or objects), .csv, .tsv; others: a text a line.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="JSON lines, one for each row; - is stdout.")],
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    column: Annotated[str | None, typer.Option(help="Column or key with the text; 'text' if not given.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt, with {text} and {column} where they go.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take each text as a user's message.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="How many rows run together.")] = 16,
    encoding: Annotated[str, typer.Option(help="Of IN: utf-8, gb18030, latin-1, ...")] = "utf-8",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again where OUT exists.")] = False,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    options: dict[str, Any],
) -> None:
    """Answer every row of a file.

    OUT has one JSON object a row: 'line', the row's 'id' if it has one, and 'text', 'tokens', 'finish_reason', or
    'error' for a row that cannot be answered; such rows stop nothing. 'line' counts from 1, behind a CSV file's header.
    An interrupted run goes on where it was when the same command is given again: OUT.run.json says how OUT was made.
    """
    from modelscope_polylm.cli.batch.job import Job, complete_lines
    from modelscope_polylm.cli.batch.output import is_stream
    from modelscope_polylm.cli.batch.rows import InputFile, Question

    if as_json and str(out) == "-":
        raise OptionError("--json prints to stdout, where the answers go: name a file for OUT.")
    job = Job(InputFile.check(source, encoding), out, Question(column, template), chat, batch_size, overwrite)
    job.check()
    generator = load_model(model, revision, device, dtype, backend)
    try:
        summary = job.run(generator, options)
    except KeyboardInterrupt:
        if is_stream(out):
            raise
        write_error(f"Interrupted: {complete_lines(out)} lines are written, and the same command goes on behind them.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        write(json.dumps(summary) + "\n")
    elif is_terminal(sys.stderr):
        write_error("{lines} lines, {tokens} tokens, {tokens_per_second} tokens/s.".format(**summary))
    if summary["errors"]:
        write_error(f"{summary['errors']} of {summary['lines']} lines hold an error.")
