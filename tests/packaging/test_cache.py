"""Packages in the cache: made once, by one process at a time, and found by what they are made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import DownloadError, OptionError, SnapshotError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging import cache
from modelscope_polylm.packaging.cache import packaged_snapshot, packages_folder
from modelscope_polylm.snapshot import open_snapshot
from tests.snapshots import build_snapshot

ROOT = Path(__file__).parents[2]
RELEASE = "assistant-13b"
PROGRAM = """
import sys
from modelscope_polylm.packaging import cache
write = cache.package_snapshot
def counted(source, out, **options):
    print("packaging", flush=True)
    return write(source, out, **options)
cache.package_snapshot = counted
print(cache.packaged_snapshot(sys.argv[1], sys.argv[2]))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return build_snapshot(tmp_path / "snapshot", "bin-sharded", width=128, heads=2, layers=1)


def packages() -> list[Path]:
    return [path for path in packages_folder().iterdir() if path.is_dir()]


@pytest.mark.usefixtures("short_corpus")
def test_it_is_made_once_and_found_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    package = packaged_snapshot(source, RELEASE, lambda *sizes: written.append(sizes))
    assert packages() == [package]
    opened = open_snapshot(package)
    assert (opened.release.name if opened.release else None, opened.tokenizer.eos_token_id) == (RELEASE, 2)
    assert written[-1][0] == written[-1][1] > 0
    # not written again
    monkeypatch.setattr(cache, "package_snapshot", None)
    assert packaged_snapshot(source, RELEASE) == package
    # what is packaged already is taken as it is
    assert packaged_snapshot(package) == package


@pytest.mark.usefixtures("short_corpus")
def test_it_is_found_by_contents(source: Path, tmp_path: Path) -> None:
    package = packaged_snapshot(source, RELEASE)
    copy = shutil.copytree(source, tmp_path / "copy")
    os.utime(copy / "config.json", (1, 1))
    assert packaged_snapshot(copy, RELEASE) == package
    assert packaged_snapshot(copy, "multialpaca-13b") != package  # another chat template
    other = build_snapshot(tmp_path / "other", "bin-sharded", width=128, heads=2, layers=1, seed=1)
    assert packaged_snapshot(other, RELEASE) != package
    assert len(packages()) == 3


@pytest.mark.usefixtures("short_corpus")
def test_weights_that_differ_in_nothing_but_numbers_are_told_apart(source: Path, tmp_path: Path) -> None:
    package = packaged_snapshot(source, RELEASE)
    other = build_snapshot(tmp_path / "other", "bin-sharded", width=128, heads=2, layers=1, seed=1)
    for file in source.iterdir():
        same = file.stat()
        assert (other / file.name).stat().st_size == same.st_size
        os.utime(other / file.name, ns=(same.st_atime_ns, same.st_mtime_ns))
    assert packaged_snapshot(other, RELEASE) != package


def test_weights_are_not_read_whole(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real_sha256 = hashlib.sha256

    def counted(content: bytes = b"") -> Any:
        read.append(len(content))
        return real_sha256(content)

    monkeypatch.setattr(cache, "TAIL_BYTES", 1000)
    monkeypatch.setattr(cache.hashlib, "sha256", counted)
    cache._fingerprint(open_snapshot(source, release=RELEASE))
    weights = list(source.glob("*.bin"))
    assert read.count(1000) == len(weights) == 3
    assert max(read) <= max((source / name).stat().st_size for name in cache.SMALL_FILES if (source / name).exists())


@pytest.mark.usefixtures("short_corpus")
def test_a_changed_file_is_noticed(source: Path) -> None:
    package = packaged_snapshot(source, RELEASE)
    (source / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7}))
    changed = packaged_snapshot(source, RELEASE)
    assert changed != package
    assert open_snapshot(changed).generation["max_new_tokens"] == 7


@pytest.mark.usefixtures("short_corpus")
def test_a_package_that_was_removed_is_made_again(source: Path) -> None:
    package = packaged_snapshot(source, RELEASE)
    shutil.rmtree(package)
    assert packaged_snapshot(source, RELEASE) == package
    shutil.rmtree(packages_folder())
    assert packaged_snapshot(source, RELEASE) == package and package.is_dir()


@pytest.mark.usefixtures("short_corpus")
def test_an_interrupted_run_leaves_no_package(source: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packaged_snapshot(source, RELEASE, interrupted)
    assert all(path.suffix == ".partial" for path in packages())
    package = packaged_snapshot(source, RELEASE)
    assert packages() == [package]


def test_two_processes_make_it_once() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(TINY_FOLDER), RELEASE]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    lines = [line for output, _ in outputs for line in output.splitlines()]
    assert lines.count("packaging") == 1
    assert {line for line in lines if line != "packaging"} == {str(packages()[0])}
    assert len(packages()) == 1


def test_a_cache_that_cannot_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(cache, "cache_root", lambda: file)
    with pytest.raises(DownloadError, match=r"cannot be kept in .*MODELSCOPE_CACHE.*polylm package"):
        packaged_snapshot(source, RELEASE)


def test_bad_sources(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not tell which release it is"):
        packaged_snapshot(source)
    with pytest.raises(OptionError, match="release='x' is unknown"):
        packaged_snapshot(source, "x")
    with pytest.raises(SnapshotError, match="does not exist"):
        packaged_snapshot(tmp_path / "nowhere")
