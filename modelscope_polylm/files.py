"""Files on disk, each operation once: atomic writes, locks between processes, sha256, the cache's folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

HASH_BLOCK_BYTES = 1 << 24


def cache_root() -> Path:
    """The folder of ModelScope's cache, as its client sees it."""
    from modelscope_hub.config import get_default_config

    return Path(get_default_config().cache_dir)


def file_sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that a reader sees whole or not at all, also after a power failure."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        flush_to_disk(new)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Return when a file's contents, or the names in a folder, would survive a power failure."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, when_held: Callable[[], None] = lambda: None) -> None:
    """Lock an open file or folder against other processes, until it is closed or this process ends.

    Args:
        descriptor: of the file or folder.
        when_held: called before waiting for the process that holds the lock; what it raises ends the wait.

    Where the platform or the file system has no locks, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        when_held()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a network file system without locks
        return
