"""`polylm package`, `polylm verify`, `polylm upload`: snapshots as files, for the hub and for other engines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from modelscope_polylm.terminal.flags import AdapterFlag, DeviceFlag, JsonFlag, RevisionFlag, complete_model
from modelscope_polylm.terminal.models import find_model, release_name
from modelscope_polylm.terminal.output import NARROW, console, is_terminal, working, write

Source = Annotated[
    str,
    typer.Argument(
        help="A folder, a hub id, or a release such as tiny or assistant-13b.", autocompletion=complete_model
    ),
]

Progress = Callable[[int, int], None]
"""Takes the bytes that are done and their total."""


def package(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    *,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32 or float16; as stored if unset.")] = None,
    release: Annotated[str | None, typer.Option(help="Which release it is, where the source does not tell.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of one weight file.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in the folder.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop also where random text is cut differently.")] = False,
    adapter: AdapterFlag = None,
    revision: RevisionFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a snapshot that every engine reads right.

    Safetensors, right end token, an exact tokenizer.json, a chat template, a model card. A run that was interrupted is
    continued by the same command.
    """
    folder = find_model(source, revision)
    from modelscope_polylm.packaging.package import package_snapshot

    name = release_name(source, release)
    with byte_progress("Writing weights") as progress:
        report = package_snapshot(folder, out, dtype, name, max_shard_size, force, strict, progress, adapter)
    parts = {"folder": str(report.folder), "files": report.files, "size": report.size, "warnings": report.warnings}
    facts = {**parts, "strings": report.parity.total, "differences": list(map(str, report.parity.differences))}
    write(f"{json.dumps(facts, ensure_ascii=False) if as_json else report}\n")


def verify(
    snapshot: Source,
    *,
    device: DeviceFlag = None,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Also load the network and run it.")] = True,
    revision: RevisionFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Examine a snapshot.

    Tells for every fault what it means and which command repairs it. Ends with exit code 1 if there is a fault.
    """
    folder = find_model(snapshot, revision)
    with working(f"Examining {snapshot}"):
        from modelscope_polylm.packaging.verify import render_report, verify_snapshot

        report = verify_snapshot(folder, snapshot, device, run)
    findings = [dataclasses.asdict(finding) for finding in report.findings]
    write(f"{json.dumps(findings, ensure_ascii=False) if as_json else render_report(report, console().width)}\n")
    raise typer.Exit(report.exit_code)


def upload(
    folder: Annotated[Path, typer.Argument(help="A folder that `polylm package` wrote.")],
    model_id: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    *,
    revision_tag: Annotated[str | None, typer.Option(help="Name the result, such as v1.1.0.")] = None,
    visibility: Annotated[str, typer.Option(help="Of a new model: private, internal or public.")] = "private",
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload PolyLM package",
) -> None:
    """Send a package to ModelScope.

    The token is read from MODELSCOPE_API_TOKEN or ModelScope's own login.
    """
    from modelscope_polylm.hub.upload import upload_package

    with byte_progress("Uploading") as progress:
        address = upload_package(folder, model_id, revision_tag, visibility, message, progress)
    write(f"{address}\n")


@contextlib.contextmanager
def byte_progress(text: str) -> Iterator[Progress | None]:
    """What to call while bytes go on; None where nobody would see it."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich import progress

    screen = console(stderr=True)
    wide = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    ]
    columns = [*(wide if screen.width >= NARROW else []), progress.TaskProgressColumn(), progress.TimeRemainingColumn()]
    with progress.Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
