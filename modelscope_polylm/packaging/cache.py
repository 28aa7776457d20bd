"""Snapshots of 2023 as packages in a cache: made once, by one process, and found again by what they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from modelscope_polylm.backends.vllm.backend import form_problems
from modelscope_polylm.errors import DownloadError
from modelscope_polylm.files import cache_root
from modelscope_polylm.packaging.package import Progress, package_snapshot
from modelscope_polylm.snapshot import Snapshot, open_snapshot

logger = logging.getLogger(__name__)

FORM = 1
"""Counts up when `package_snapshot` begins to write something else."""
CONTENTS = ("config.json", "configuration.json", "generation_config.json", "tokenizer.model")
BLOCK = 1 << 24


def packaged_snapshot(
    folder: str | Path, release: str | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """The folder itself if it is in today's form, otherwise a package of it in the cache, which is made if needed.

    A package is found by the contents of what it was made of. These are read again only where the size or the date of a
    file has changed. Other processes that want the same package wait for the one that makes it.

    Args:
        folder: a complete snapshot in any of its layouts.
        release: a name in `releases.RELEASES`, where the folder does not tell.
        progress: called with what is being done, the bytes that are done, and their total; a bar on a terminal if None.

    Raises:
        SnapshotError: the folder is no complete snapshot, or its tokenizer cannot be converted exactly.
        OptionError: the folder does not tell its release.
        DownloadError: the cache cannot be written.
    """
    snapshot = open_snapshot(folder, release=release)
    if not form_problems(snapshot):
        return snapshot.folder
    root = packages_folder()
    note = root / f"{_stamp(snapshot)}.source"
    if (found := _noted(root, note)) is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(root / f"{note.stem}.lock"))
            report = progress or stack.enter_context(_bar())
            if (found := _noted(root, note)) is not None:  # by the process that held the lock
                return found
            return _make(snapshot, root, note, report)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"The package cannot be kept in {root} ({error}): make room there, set MODELSCOPE_CACHE to another disk, "
            f"or write it yourself with `polylm package {snapshot.folder} OUT` and load OUT."
        ) from error


def packages_folder() -> Path:
    """Where packages are kept; it may be removed as a whole."""
    return cache_root() / "polylm-packages"


def _make(snapshot: Snapshot, root: Path, note: Path, report: Callable[[str, int, int], None]) -> Path:
    digest = _digest(snapshot, lambda done, total: report("Reading the snapshot", done, total))
    package = root / digest
    with _locked(root / f"{digest}.lock"):
        if not package.is_dir():
            logger.warning("%s is not in today's form: packaging it, once, in %s.", snapshot.folder, package)
            release = snapshot.release.name if snapshot.release else None
            writing: Progress = lambda done, total: report("Packaging it for vLLM", done, total)  # noqa: E731
            package_snapshot(snapshot.folder, package, release=release, progress=writing)
    new = note.with_suffix(f".{os.getpid()}")
    new.write_text(digest, encoding="utf-8")
    os.replace(new, note)
    return package


def _noted(root: Path, note: Path) -> Path | None:
    """The package that was made of the same files, if it is still there."""
    try:
        package = root / note.read_text(encoding="utf-8")
    except OSError:
        return None
    return package if (package / "config.json").is_file() else None


def _stamp(snapshot: Snapshot) -> str:
    """Names the files by their places, sizes and dates, which is quick."""
    folder = snapshot.folder.resolve()
    paths = [path for path in _sources(snapshot) if path.is_file()]
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return _hash([FORM, str(folder), _release_name(snapshot), stats])


def _digest(snapshot: Snapshot, progress: Progress) -> str:
    """Names the package by the contents of the files that it is made of."""
    paths = [path for path in _sources(snapshot) if path.is_file()]
    total, done = sum(path.stat().st_size for path in paths), 0
    sums = []
    for path in paths:
        sha256 = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                sha256.update(block)
                done += len(block)
                progress(done, total)
        sums.append([path.name, sha256.hexdigest()])
    return _hash([FORM, _release_name(snapshot), sums])


def _sources(snapshot: Snapshot) -> list[Path]:
    weights = sorted(file.path for file in snapshot.weight_files.files)
    return [*(snapshot.folder / name for name in CONTENTS), *weights]


def _release_name(snapshot: Snapshot) -> str | None:
    return snapshot.release.name if snapshot.release else None


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the lock goes with the process that holds it."""
    import fcntl  # not on Windows, where vLLM is not either

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("Waiting for another process that packages the same snapshot.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda text, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)
