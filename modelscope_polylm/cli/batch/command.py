"""`polylm batch`: a file of inputs in, a file of answers out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model, model_names
from modelscope_polylm.terminal.output import FAILED, INTERRUPTED, is_terminal, write, write_error


@takes_generation_options
def batch(
    *,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Text, JSON, JSON lines, CSV, Parquet or Excel; .gz, too.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="JSON lines; a table if it ends in .csv or .tsv; - is stdout.")
    ],
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    column: Annotated[str | None, typer.Option(help="Column or key with the text; 'text' if not given.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt, with {text} and {column} where they go.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take each text as a user's message.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Most rows that run together; as many as fit if not given.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Of IN: text (one a line), jsonl, json, csv, parquet, xlsx; found if not given.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="Of a CSV file, such as ; or tab; found if not given.")] = None,
    encoding: Annotated[str, typer.Option(help="Of IN: utf-8, gb18030, latin-1, ...")] = "utf-8",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again where OUT exists.")] = False,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    quantization: QuantizationFlag = None,
    kv_cache_dtype: CacheDtypeFlag = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    options: dict[str, Any],
) -> None:
    """Answer every row of a file.

    A row has a 'text' or 'messages', and may have an 'id'; --column and --template make prompts of other keys.
    OUT has one JSON object a row: 'line', the row's 'id' if it has one, and 'text', 'tokens', 'finish_reason', or
    'error' for a row that cannot be answered; such rows stop nothing. A table has the columns of IN, and 'answer',
    'tokens', 'finish_reason', 'error'. 'line' counts from 1, after a table's header.
    OpenAI's batch files ('custom_id', 'method', 'url', 'body') get OpenAI's responses.
    An interrupted run goes on where it was when the same command is given again: OUT.run.json says how OUT was made.
    """
    from modelscope_polylm.cli.batch.job import BatchJob
    from modelscope_polylm.cli.batch.records import is_table
    from modelscope_polylm.cli.batch.requests import PromptTemplate
    from modelscope_polylm.cli.batch.rows import BatchInput

    if as_json and str(out) == "-":
        raise OptionError("--json prints to stdout, where the answers go: name a file for OUT.")
    prompts = PromptTemplate(column, template, chat, keeps_columns=is_table(out))
    rows = BatchInput.find(source, encoding, format=format, delimiter=delimiter, columns=prompts.columns)
    job = BatchJob(rows, out, prompts, batch_size, overwrite, model_names(model, None))
    job.check()
    generator = load_model(model, revision, device, dtype, backend, release, adapter, quantization, kv_cache_dtype)
    summary = job.run(generator, options)
    if summary["written"] < summary["lines"]:
        write_error(f"Interrupted: {summary['written']} lines are written, and the same command goes on after them.")
        raise typer.Exit(INTERRUPTED)
    if as_json:
        write(json.dumps(summary) + "\n")
    elif is_terminal(sys.stderr):
        write_error("{lines} lines, {tokens} tokens, {tokens_per_second} tokens/s.".format(**summary))
    if summary["failed"]:
        write_error(f"{summary['failed']} of {summary['lines']} lines hold an error.")
    if summary["failed"] and summary["failed"] == summary["lines"]:
        raise typer.Exit(FAILED)
