"""A package while it is being written: a folder beside its place, with notes on what is finished in it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import DownloadError, OptionError
from modelscope_polylm.packaging.safetensors_writer import file_sha256

JOURNAL = ".journal.json"


class UnfinishedPackage:
    """`OUT.partial`: everything is written there, and the folder takes its name only when it is complete.

    Attributes:
        folder: where to write.
        finished: sha256 of the files that are complete, by name.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        """Continue what an earlier run with the same settings has left, or begin anew.

        Args:
            out: where the package will be.
            settings: what the contents of the package depend on.

        Raises:
            OptionError: another run is writing there, or the folder for work holds something else.
        """
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self._settings = json.loads(json.dumps(settings))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder, out)
        try:
            self.finished = self._left_over()
            if not self.finished:
                self._clear()
            self._note()
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
        self.finish(name, file_sha256(self.folder / name))

    def copy(self, source: Path, name: str) -> None:
        """Copy a file, and check that the copy is the same."""
        shutil.copyfile(source, self.folder / name)
        self.finish(name, file_sha256(source))
        self.check(name)

    def finish(self, name: str, sha256: str) -> None:
        """Note that a file is complete."""
        self.finished[name] = sha256
        self._note()

    def check(self, name: str) -> None:
        """Read a finished file again. Raises DownloadError where its contents are not what was written."""
        if file_sha256(self.folder / name, from_disk=True) != self.finished[name]:
            del self.finished[name]
            self._note()
            raise DownloadError(
                f"{self.folder / name} reads differently from what was written: the disk may be failing."
            )

    def publish(self) -> None:
        """Give the folder its name, in the place of what may be there."""
        for path in self.folder.iterdir():
            if path.name not in self.finished and path.name != JOURNAL:
                path.unlink()
        old, is_replaced = _set_aside(self.out), self.out.exists()
        if is_replaced:
            self.out.rename(old)
        os.replace(self.folder, self.out)
        (self.out / JOURNAL).unlink()
        if is_replaced:
            shutil.rmtree(old, ignore_errors=True)

    def _clear(self) -> None:
        """Empty the folder, which stays: it carries the lock."""
        names = [path.name for path in self.folder.iterdir()]
        if names and not any(name.startswith(JOURNAL) for name in names):
            raise OptionError(
                f"{self.folder} is needed for work and holds something else: move it or name another folder."
            )
        for path in self.folder.iterdir():
            path.unlink()

    def _left_over(self) -> dict[str, str]:
        try:
            notes = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if notes.get("settings") != self._settings:
            return {}
        return {name: sha256 for name, sha256 in notes["finished"].items() if self._is_intact(name, sha256)}

    def _is_intact(self, name: str, sha256: str) -> bool:
        path = self.folder / name
        return path.is_file() and file_sha256(path) == sha256

    def _note(self) -> None:
        new = self.folder / (JOURNAL + ".new")
        new.write_text(json.dumps({"settings": self._settings, "finished": self.finished}), encoding="utf-8")
        os.replace(new, self.folder / JOURNAL)


def check_place(source: Path, out: Path, force: bool) -> None:
    """Raise OptionError where a package must not be written: over the source, or over something that is there."""
    here, there = out.resolve(), source.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise OptionError(f"The package cannot be written to {out}: it overlaps with its source {source}.")
    if out.is_file():
        raise OptionError(f"{out} is a file: name a folder that does not exist yet.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise OptionError(f"{out} is not empty: name another folder, or overwrite it with --force.")
    if not (out / "config.json").is_file():
        raise OptionError(f"{out} does not hold a model, so it is not overwritten: name another folder.")
    if _set_aside(out).exists():
        raise OptionError(
            f"{_set_aside(out)} holds what an interrupted run put aside: move it away or remove it first."
        )


def _locked(folder: Path, out: Path) -> int | None:
    """A descriptor that keeps other runs out until it is closed, also by the process's end."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # the latter: another run has just given the folder its name
        pass
    except OSError:  # a network's file system without locks
        return descriptor
    os.close(descriptor)
    raise OptionError(f"Another run is writing {out}: wait for its end, or name another folder.")


def _set_aside(out: Path) -> Path:
    """Where a package that is replaced waits for its end."""
    return out.with_name(out.name + ".replaced")
