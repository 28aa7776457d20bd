"""Files: written whole or not at all, locked by one holder at a time, hashed."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from modelscope_polylm import files
from modelscope_polylm.files import file_sha256, flush_to_disk, lock, write_atomically


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "北京\n")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a", "new \ud800")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "北京\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_hash_of_a_file_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HASH_BLOCK_BYTES", 1000)
    content = os.urandom(2500)
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_missing_file_cannot_be_flushed(tmp_path: Path) -> None:
    flush_to_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        flush_to_disk(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_lock_is_held_until_the_descriptor_is_closed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir() if kind == "folder" else path.write_text("")
    first, second = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)

    def refuse() -> None:
        raise InterruptedError("held")

    lock(first, when_held=refuse)
    with pytest.raises(InterruptedError, match="held"):
        lock(second, when_held=refuse)
    os.close(first)
    lock(second, when_held=refuse)
    os.close(second)


def test_lock_waits_for_the_holder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    first, second = os.open(tmp_path / "a", os.O_RDONLY), os.open(tmp_path / "a", os.O_RDONLY)
    lock(first)
    waiting = threading.Event()
    waiter = threading.Thread(target=lock, args=(second, waiting.set), daemon=True)
    waiter.start()
    assert waiting.wait(10)
    assert waiter.is_alive()
    os.close(first)
    waiter.join(10)
    assert not waiter.is_alive()
    os.close(second)
