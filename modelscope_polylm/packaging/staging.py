"""The folder in which a package is written, so that an interrupted run never leaves something that looks complete."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

from modelscope_polylm.errors import DownloadError, OptionError
from modelscope_polylm.files import file_sha256, flush_to_disk, lock, read_own_json

logger = logging.getLogger(__name__)

PROGRESS_FILE = ".progress.json"
Identity = list[int]
"""Device and inode of a folder, which it keeps when it is renamed."""


class StagingFolder:
    """`OUT.partial`: a package is written there, and the folder is renamed to `OUT` when it is complete.

    Its progress file lets the next run continue, or finish a replacement that was interrupted.

    Attributes:
        out: where the package will be.
        folder: where to write.
        finished: sha256 of the files that are complete, by name.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        """Continue what an earlier run with the same settings has left, or start over.

        Args:
            out: where the package will be.
            settings: everything that the contents of the package depend on, as JSON.

        Raises:
            OptionError: another run is writing there, or one of the folders that are needed holds something else.
        """
        self.out, self.folder = out, out.with_name(out.name + ".partial")
        self._replaced = out.with_name(out.name + ".replaced")
        self._settings = json.loads(json.dumps(settings))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_folder(self.folder, out)
        try:
            self._recover()
            self.finished = self._left_over()
            if not self.finished:
                self._clear()
            self._save_progress()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other runs write there."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, name: str, text: str) -> None:
        """Write a small file."""
        (self.folder / name).write_text(text, encoding="utf-8")
        flush_to_disk(self.folder / name)
        self.finish(name, file_sha256(self.folder / name))

    def copy(self, source: Path, name: str) -> None:
        """Copy a file, and check that the copy is the same."""
        shutil.copyfile(source, self.folder / name)
        flush_to_disk(self.folder / name)
        self.finish(name, file_sha256(source))
        self.check(name)

    def finish(self, name: str, sha256: str) -> None:
        """Record that a file is complete and on the disk."""
        self.finished[name] = sha256
        self._save_progress()

    def check(self, name: str) -> None:
        """Read a finished file again. Raises DownloadError if its contents are not what was written."""
        if file_sha256(self.folder / name) != self.finished[name]:
            del self.finished[name]
            self._save_progress()
            raise DownloadError(
                f"{self.folder / name} reads differently from what was written: the disk may be failing."
            )

    def publish(self) -> None:
        """Rename the folder to `out`, and then remove the package that was there.

        Raises:
            DownloadError: the folder cannot be renamed; says where the earlier package is.
        """
        for path in self.folder.iterdir():
            if path.name not in self.finished and path.name != PROGRESS_FILE:
                path.unlink()
        replaces = _identity(self.out)
        self._save_progress(replaces)
        flush_to_disk(self.folder)
        if replaces:
            self.out.rename(self._replaced)
        try:
            os.replace(self.folder, self.out)
        except BaseException as error:
            outcome = self._undo(replaces)
            if isinstance(error, OSError):
                raise DownloadError(f"{self.folder} cannot be renamed to {self.out}: {error}.{outcome}") from error
            raise
        flush_to_disk(self.out.parent)
        self._complete_replacement(replaces)

    def _undo(self, replaces: Identity | None) -> str:
        """Give the earlier package its name back; say where it is."""
        if not replaces:
            return ""
        try:
            self._replaced.rename(self.out)
        except OSError:
            return f" The earlier package is now {self._replaced}."
        return " The earlier package is still there."

    def _complete_replacement(self, replaces: Identity | None) -> None:
        """Remove the earlier package, then the progress file, which until then tells the next run to do this."""
        if replaces and _identity(self._replaced) == replaces:
            shutil.rmtree(self._replaced, ignore_errors=True)
            if self._replaced.exists():
                logger.warning("The earlier package cannot be removed: delete %s yourself.", self._replaced)
        (self.out / PROGRESS_FILE).unlink(missing_ok=True)
        flush_to_disk(self.out)

    def _recover(self) -> None:
        """Finish or undo the replacement of a run that was killed.

        Raises:
            OptionError: `OUT.replaced` is not from such a run.
        """
        if replaces := _read_progress(self.out).get("replaces"):
            self._complete_replacement(replaces)
        replaces = _read_progress(self.folder).get("replaces")
        if replaces and not self.out.exists() and _identity(self._replaced) == replaces:
            self._replaced.rename(self.out)
        if self.out.exists() and self._replaced.exists():
            raise OptionError(
                f"{self._replaced} is needed for the package that will be replaced: move it away or remove it first."
            )

    def _clear(self) -> None:
        """Empty the folder, which itself stays because it carries the lock."""
        names = [path.name for path in self.folder.iterdir()]
        if names and not any(name.startswith(PROGRESS_FILE) for name in names):
            raise OptionError(f"{self.folder} is needed for writing and holds something else: move it away first.")
        for path in self.folder.iterdir():
            path.unlink()

    def _left_over(self) -> dict[str, str]:
        progress = _read_progress(self.folder)
        if progress.get("settings") != self._settings:
            return {}
        return {name: sha256 for name, sha256 in progress["finished"].items() if self._is_intact(name, sha256)}

    def _is_intact(self, name: str, sha256: str) -> bool:
        path = self.folder / name
        return path.is_file() and file_sha256(path) == sha256

    def _save_progress(self, replaces: Identity | None = None) -> None:
        progress = {"settings": self._settings, "finished": self.finished, "replaces": replaces}
        new = self.folder / f"{PROGRESS_FILE}.new"
        new.write_text(json.dumps(progress), encoding="utf-8")
        os.replace(new, self.folder / PROGRESS_FILE)


def check_output_folder(source: Path, out: Path, force: bool) -> None:
    """Raise OptionError if a package must not be written: over its source, or over something that is there."""
    target, origin = out.resolve(), source.resolve()
    if target == origin or target in origin.parents or origin in target.parents:
        raise OptionError(f"The package cannot be written to {out}: it overlaps with its source {source}.")
    if out.is_file():
        raise OptionError(f"{out} is a file: name a folder that does not exist yet.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise OptionError(f"{out} is not empty: name another folder, or overwrite it with --force.")
    if not (out / "config.json").is_file():
        raise OptionError(f"{out} does not hold a model, so it is not overwritten: name another folder.")


def _identity(folder: Path) -> Identity | None:
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return [found.st_dev, found.st_ino]


def _read_progress(folder: Path) -> dict[str, Any]:
    return read_own_json(folder / PROGRESS_FILE) or {}


def _lock_folder(folder: Path, out: Path) -> int | None:
    """Open the folder and keep other runs out of it until it is closed. Raises OptionError if another run is there."""
    if os.name == "nt":  # folders cannot be opened there
        return None

    def refuse() -> NoReturn:
        raise OptionError(f"Another run is writing {out}: wait for its end, or name another folder.")

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, when_held=refuse)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        refuse()  # another run has just renamed the folder to `out`
    except BaseException:
        os.close(descriptor)
        raise
