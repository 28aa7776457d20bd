"""Files on disk, each operation once: atomic writes, locks between processes, sha256, the cache's folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

HASH_BLOCK_BYTES = 1 << 24


def cache_root() -> Path:
    """The folder of ModelScope's cache, as its client sees it."""
    from modelscope_hub.config import get_default_config

    return Path(get_default_config().cache_dir)


def file_sha256(path: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """The hexadecimal sha256 of a file's contents.

    Args:
        path: a regular file.
        progress: called with the number of bytes of each block that was read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that a reader sees whole or not at all, also after a power failure."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


@contextlib.contextmanager
def locked(descriptor: int, when_taken: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock on an open file or folder that other processes respect; the lock ends with the process.

    Args:
        descriptor: of the file or folder.
        when_taken: called before waiting for the process that holds the lock; what it raises ends the wait.

    File systems and platforms without locks are used without one.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if when_taken is not None:
            when_taken()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a network file system without locks
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
