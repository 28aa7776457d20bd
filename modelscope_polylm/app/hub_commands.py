"""`polylm package`, `polylm verify`, `polylm upload`: snapshots as files, for the hub and for other engines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from modelscope_polylm.app.model_flags import DeviceFlag
from modelscope_polylm.app.model_loading import find_model, published
from modelscope_polylm.app.terminal import is_terminal, write

Progress = Callable[[int, int], None]
Source = Annotated[str, typer.Argument(help="A folder, a hub id, or a release such as tiny or assistant-13b.")]


def package(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    *,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32 or float16; as stored if unset.")] = None,
    release: Annotated[str | None, typer.Option(help="Which release it is, where the source does not tell.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of one weight file.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in the folder.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop also where random text is cut differently.")] = False,
    revision: Annotated[str | None, typer.Option(help="Tag or branch on the hub.")] = None,
) -> None:
    """Write a snapshot that every engine reads right.

    Safetensors, right end token, an exact tokenizer.json, a chat template, a model card. A run that was interrupted is
    continued by the same command.
    """
    folder, known = find_model(source, revision), published(source)
    from modelscope_polylm.hub.package import package_snapshot

    name = release or (known.name if known else None)
    with _progress("Writing weights") as progress:
        report = package_snapshot(folder, out, dtype, name, max_shard_size, force, strict, progress)
    write(f"{report}\n")


def verify(
    snapshot: Source,
    *,
    device: DeviceFlag = None,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Also load the network and run it.")] = True,
    revision: Annotated[str | None, typer.Option(help="Tag or branch on the hub.")] = None,
) -> None:
    """Examine a snapshot.

    Tells for every fault what it means and which command repairs it.

    Ends with exit code 1 if there is a fault.
    """
    folder = find_model(snapshot, revision)
    from modelscope_polylm.hub.verify import verify_snapshot

    report = verify_snapshot(folder, snapshot, device, run)
    write(f"{report}\n")
    raise typer.Exit(report.exit_code)


def upload(
    folder: Annotated[Path, typer.Argument(help="A folder that `polylm package` wrote.")],
    model_id: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    *,
    revision_tag: Annotated[str | None, typer.Option(help="Name the result, such as v1.1.0.")] = None,
    visibility: Annotated[str, typer.Option(help="Of a new model: private, internal or public.")] = "private",
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload PolyLM package",
) -> None:
    """Send a package to ModelScope. The token is read from MODELSCOPE_API_TOKEN or ModelScope's own login."""
    from modelscope_polylm.hub.upload import upload_package

    with _progress("Uploading") as progress:
        address = upload_package(folder, model_id, revision_tag, visibility, message, progress)
    write(f"{address}\n")


@contextlib.contextmanager
def _progress(text: str) -> Iterator[Progress | None]:
    """A bar of bytes on stderr; None where that is no terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    from modelscope_polylm.app.terminal import console

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
