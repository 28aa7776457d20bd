"""Files on disk, each operation once: files of strangers, texts, atomic writes, locks, sha256, the cache's folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from modelscope_polylm.errors import PolyLMError, SnapshotError

HASH_BLOCK_BYTES = 1 << 24
JSON_BYTES = 4 << 20
"""Most bytes of a JSON file of a snapshot; the largest published one, the index of 13B, has about 60 kB."""
GIT_LFS_START = b"version https://git-lfs"
LONGEST_NAME = 255
"""Bytes of a file name that every common file system takes."""


def open_untrusted(path: Path) -> BinaryIO:
    """Open a file that may come from a stranger. Links are followed, since hub caches are made of them.

    Raises:
        SnapshotError: it is missing, cannot be read, or is a pipe, a device or a folder.
    """
    try:
        # without O_NONBLOCK, opening a pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise SnapshotError(f"{path.name} is missing: download the snapshot again") from error
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{path.name} cannot be read ({_reason(error)})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SnapshotError(f"{path.name} cannot be read: it is a folder, a pipe or a device, not a regular file")
    return os.fdopen(descriptor, "rb")


def read_untrusted(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes that may come from a stranger.

    Raises:
        SnapshotError: as `open_untrusted`; the file is larger, or only a Git LFS pointer.
    """
    with open_untrusted(path) as file, library_errors(path.name):
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise SnapshotError(f"{path.name} has more than {limit:,} bytes, which no such file of a snapshot has")
    if content.startswith(GIT_LFS_START):
        raise SnapshotError(f"{path.name} is only a Git LFS pointer: run `git lfs pull` in its folder")
    return content


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Read a JSON file that may come from a stranger.

    Raises:
        SnapshotError: as `read_untrusted`; or it is not JSON, or nested too deeply.
    """
    content = read_untrusted(path, limit)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path.name} cannot be read ({_reason(error)}): download the snapshot again") from error


def read_own_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file that a run of this package wrote; None where the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a snapshot names, directly in its folder.

    Raises:
        SnapshotError: the name is empty, too long, or leads elsewhere.
    """
    is_plain = name not in ("", ".", "..") and name.isprintable() and not any(mark in name for mark in "/\\")
    if not is_plain or len(name.encode()) > LONGEST_NAME:
        raise SnapshotError(f"{name!r:.80} is not the name of a file in the snapshot's folder")
    return folder / name


@contextlib.contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Turn whatever a library raises over the contents of a file into a SnapshotError that names the file."""
    try:
        yield
    except PolyLMError:
        raise
    except Exception as error:  # parsers answer damaged bytes with any exception, KeyError included
        raise SnapshotError(f"{name} is damaged or incomplete, download it again ({_reason(error)})") from error


def decode_text(content: bytes) -> str:
    """The text of a UTF-8 file that somebody wrote: without a byte order mark, and with line feeds for all line ends.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    return content.decode("utf-8-sig").replace("\r\n", "\n")


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


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.splitlines()[0][:200] if text else type(error).__name__
