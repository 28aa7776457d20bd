"""Packages in ModelScope's cache, for engines that cannot read snapshots from 2023: each is made once, then found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from modelscope_polylm.backends.vllm.backend import packaging_reasons
from modelscope_polylm.errors import DownloadError
from modelscope_polylm.files import cache_root, lock
from modelscope_polylm.packaging.package import Progress, package_snapshot
from modelscope_polylm.snapshot import Snapshot, open_snapshot

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Increases when `package_snapshot` begins to write something else."""
SMALL_FILES = ("config.json", "configuration.json", "generation_config.json", "tokenizer.model")
TAIL_BYTES = 1 << 20


def packaged_snapshot(
    folder: str | Path,
    release: str | None = None,
    progress: Progress | None = None,
    adapter: str | Path | None = None,
) -> Path:
    """The folder itself if vLLM can read it, otherwise a package of it in the cache, which is made if needed.

    Other processes that want the same package wait for the one that makes it.

    Args:
        folder: a complete snapshot in any of its layouts.
        release: a name in `releases.RELEASES`, if the folder does not tell.
        progress: called with the bytes of weights that are written and their total; a bar on a terminal if None.
        adapter: peft's folder of a low-rank adapter, which is merged into the weights of a package.

    Raises:
        SnapshotError: the folder is no complete snapshot, or its tokenizer cannot be converted exactly.
        OptionError: the folder does not tell its release.
        DownloadError: the cache cannot be written.
    """
    snapshot = open_snapshot(folder, release=release, adapter=adapter)
    if snapshot.adapter is None and not packaging_reasons(snapshot):
        return snapshot.folder
    package = packages_folder() / _fingerprint(snapshot)
    try:
        return package if _is_complete(package) else _make(snapshot, package, progress)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"The package cannot be kept in {package.parent} ({error}): make room there, set MODELSCOPE_CACHE to "
            f"another disk, or write it yourself with `polylm package {snapshot.folder} OUT` and load OUT."
        ) from error


def packages_folder() -> Path:
    """The folder of all packages; it may be removed as a whole."""
    return cache_root() / "polylm-packages"


def _make(snapshot: Snapshot, package: Path, progress: Progress | None) -> Path:
    package.parent.mkdir(parents=True, exist_ok=True)
    with package.with_suffix(".lock").open("w") as file:
        lock(file.fileno(), when_held=lambda: logger.warning("Waiting for a process that packages the same snapshot."))
        if not _is_complete(package):  # the other process may have finished it
            logger.warning("vLLM cannot read %s as it is: packaging it, once, in %s.", snapshot.folder, package)
            with _bar() if progress is None else contextlib.nullcontext(progress) as report:
                merged = None if snapshot.adapter is None else snapshot.adapter.folder
                release = _release_name(snapshot)
                package_snapshot(snapshot.folder, package, release=release, progress=report, adapter=merged)
    return package


def _is_complete(package: Path) -> bool:
    return (package / "config.json").is_file()


def _fingerprint(snapshot: Snapshot) -> str:
    """Identify what a package is made of.

    Small files by their contents; weights by name, size, modification time and last bytes, where a .bin file lists the
    checksums of its tensors. Reading them whole would take a minute for 13B.
    """
    small = [snapshot.folder / name for name in SMALL_FILES if (snapshot.folder / name).is_file()]
    contents = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in small]
    weights = [_weight_mark(file.path) for file in snapshot.weight_files.files]
    adapter = snapshot.adapter.digest() if snapshot.adapter else None
    identity = json.dumps([FORMAT_VERSION, _release_name(snapshot), contents, sorted(weights), adapter])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _weight_mark(path: Path) -> tuple[str, int, int, str]:
    stat = path.stat()
    with path.open("rb") as file:
        file.seek(max(0, stat.st_size - TAIL_BYTES))
        tail = file.read()
    return path.name, stat.st_size, stat.st_mtime_ns, hashlib.sha256(tail).hexdigest()


def _release_name(snapshot: Snapshot) -> str | None:
    return snapshot.release.name if snapshot.release else None


@contextlib.contextmanager
def _bar() -> Iterator[Progress | None]:
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    text, remaining = progress.TextColumn("{task.description}"), progress.TimeRemainingColumn()
    columns = (text, progress.BarColumn(), progress.DownloadColumn(), remaining)
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Packaging it for vLLM", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
