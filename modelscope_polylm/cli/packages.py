"""`polylm package`, `polylm verify`, `polylm upload`: snapshots as files, for the hub and for other engines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from modelscope_polylm.cli.generate import read_text
from modelscope_polylm.errors import OptionError
from modelscope_polylm.terminal.flags import (
    AdapterFlag,
    DeviceFlag,
    JsonFlag,
    ModelFlag,
    QuantizationFlag,
    RevisionFlag,
)
from modelscope_polylm.terminal.models import find_model, release_name
from modelscope_polylm.terminal.output import NARROW, console, is_terminal, json_line, working, write

if TYPE_CHECKING:
    from modelscope_polylm.packaging.quantized_source import Quantization

Progress = Callable[[int, int], None]
"""Takes the bytes that are done and their total."""


def package(
    *,
    model: ModelFlag,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32 or float16; as stored if unset.")] = None,
    release: Annotated[str | None, typer.Option(help="Which release it is, where the model does not tell.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of one weight file.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in the folder.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop also where random text is cut differently.")] = False,
    adapter: AdapterFlag = None,
    quantization: Annotated[
        str | None, typer.Option(help="int4 or int8: projections in fewer bits, in GPTQ's format.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Of quantization: gptq, which makes errors good over a text (default), or round."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A UTF-8 file for gptq; else sentences in each of the 18 languages.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where gptq computes: cpu, gpu, cuda:1, ...; a GPU if there is one.")
    ] = None,
    revision: RevisionFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a snapshot that every engine reads right.

    Safetensors, right end token, an exact tokenizer.json, a chat template, a model card. A run that was interrupted is
    continued by the same command, unless it quantises.
    """
    from modelscope_polylm.packaging.package import package_snapshot

    chosen = _quantization(quantization, method, calibration, device)
    folder, name = find_model(model, revision), release_name(model, release)
    with byte_progress("Writing weights") as progress:
        report = package_snapshot(folder, out, dtype, name, max_shard_size, force, strict, progress, adapter, chosen)
    parts = {"folder": str(report.folder), "files": report.files, "size": report.size, "warnings": report.warnings}
    facts = {**parts, "strings": report.parity.total, "differences": list(map(str, report.parity.differences))}
    write(f"{json.dumps(facts, ensure_ascii=False) if as_json else report}\n")


def _quantization(
    name: str | None, method: str | None, calibration: Path | None, device: str | None
) -> Quantization | None:
    """The quantization that was asked for. Raises OptionError for its flags without it."""
    if name is None:
        flags = {"--method": method, "--calibration": calibration, "--device": device}
        if given := [flag for flag, value in flags.items() if value is not None]:
            raise OptionError(f"{', '.join(given)} only quantise: name the bits by --quantization int4 or int8.")
        return None
    from modelscope_polylm.packaging.quantized_source import Quantization

    text = None if calibration is None else read_text(None, calibration)
    return Quantization(name, method or "gptq", text, device)


def verify(
    *,
    model: ModelFlag,
    device: DeviceFlag = None,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Also load the network and run it.")] = True,
    against: Annotated[
        str | None,
        typer.Option(help="Only compare with what this model predicts and answers: a folder, id or release."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A UTF-8 file to compare on; else sentences in each of the 18 languages.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(min=0.0, help="Exit code 1 if the mean KL divergence, in nats, is larger.")
    ] = None,
    reference_device: Annotated[
        str | None, typer.Option(help="Where the model of --against runs; on --device if unset.")
    ] = None,
    quantization: QuantizationFlag = None,
    revision: RevisionFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Examine a snapshot, or compare it with another.

    Tells for every fault what it means and which command repairs it; with --against how the predictions of two
    snapshots differ. Ends with exit code 1 if there is a fault.
    """
    if against is not None:
        if not run:
            raise OptionError("--no-run leaves nothing to compare: leave it out, or --against.")
        devices = (device, reference_device or device)
        _compare(model, against, text, max_kl, devices, quantization, revision, as_json)
    unused = {
        "--text": text,
        "--max-kl": max_kl,
        "--reference-device": reference_device,
        "--quantization": quantization,
    }
    if given := [flag for flag, value in unused.items() if value is not None]:
        raise OptionError(f"{', '.join(given)} only compare with another model: name it by --against.")
    folder = find_model(model, revision)
    with working(f"Examining {model}"):
        from modelscope_polylm.packaging.verify import render_report, verify_snapshot

        report = verify_snapshot(folder, model, device, run)
    findings = [dataclasses.asdict(finding) for finding in report.findings]
    write(f"{json.dumps(findings, ensure_ascii=False) if as_json else render_report(report, console().width)}\n")
    raise typer.Exit(report.exit_code)


def _compare(
    model: str,
    reference: str,
    text: Path | None,
    max_kl: float | None,
    devices: tuple[str | None, str | None],
    quantization: str | None,
    revision: str | None,
    as_json: bool,
) -> NoReturn:
    from modelscope_polylm.packaging.comparison import compare_snapshots

    given = None if text is None else read_text(None, text)
    folders = find_model(model, revision), find_model(reference)
    with working(f"Comparing {model} with {reference}"):
        comparison = compare_snapshots(*folders, given, *devices, quantization)
    write(json_line(comparison.to_dict()) if as_json else f"{comparison}\n")
    raise typer.Exit(0 if comparison.is_within(max_kl) else 1)


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
