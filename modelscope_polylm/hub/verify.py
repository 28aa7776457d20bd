"""Examines a snapshot and says, for each fault, what it means and what repairs it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.hub.verify_files import check_hashes, check_settings, check_weights
from modelscope_polylm.hub.verify_network import check_network
from modelscope_polylm.hub.verify_report import Row, VerifyReport
from modelscope_polylm.hub.verify_tokenizer import check_tokenizer
from modelscope_polylm.snapshot import open_snapshot


def verify_snapshot(
    folder: str | Path,
    name: str | None = None,
    device: str | None = None,
    run: bool = True,
    show: Callable[[Row], None] | None = None,
) -> VerifyReport:
    """Examine a snapshot folder: files, weights, settings, tokenizer, and what the network predicts.

    Args:
        folder: the snapshot, published in 2023 or packaged.
        name: how the user named it, for the commands that are proposed; the folder if None.
        device: where the network runs, such as 'cpu'; a GPU if there is one.
        run: whether to load the network and run it, too.
        show: called with each finding as soon as it is known.

    Returns:
        The findings. Where the folder cannot be opened at all, these are the reasons.
    """
    folder = Path(folder).expanduser()
    report = VerifyReport(folder)
    for row in _rows(folder, name or str(folder), device, run):
        report.rows.append(row)
        if show:
            show(row)
    return report


def _rows(folder: Path, name: str, device: str | None, run: bool) -> Iterator[Row]:
    package = f"polylm package {shlex.quote(name)} {shlex.quote(Path(name).name + '-package')}"
    download = "modelscope download --model OWNER/NAME --local_dir " + shlex.quote(str(folder))
    try:
        snapshot = open_snapshot(folder)
    except SnapshotError as error:
        yield from (Row("snapshot", "fault", line, download) for line in str(error).splitlines()[1:] or [str(error)])
        return
    yield from check_hashes(folder, download)
    yield from check_weights(snapshot, package)
    yield from check_settings(snapshot, package)
    yield from check_tokenizer(snapshot, package)
    if run:
        yield from check_network(snapshot, device)
