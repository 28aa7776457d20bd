"""Packages in the cache: made once, found by contents, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelscope_polylm.errors import DownloadError, OptionError, SnapshotError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging import cache as packaged_cache
from modelscope_polylm.packaging.cache import packaged_snapshot, packages_folder
from modelscope_polylm.snapshot import open_snapshot
from tests.snapshots import build_snapshot

ROOT = Path(__file__).parents[2]
RELEASE = "assistant-13b"
PROGRAM = """
import sys
from modelscope_polylm.packaging import cache as packaged_cache
write = packaged_cache.package_snapshot
def counted(source, out, **options):
    print("packaging", flush=True)
    return write(source, out, **options)
packaged_cache.package_snapshot = counted
print(packaged_cache.packaged_snapshot(sys.argv[1], sys.argv[2]))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return build_snapshot(tmp_path / "snapshot", "bin-sharded", width=128, heads=2, layers=1)


def packages() -> list[Path]:
    return [path for path in packages_folder().iterdir() if path.is_dir()]


@pytest.mark.usefixtures("short_corpus")
def test_it_is_made_once_and_found_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, int, int]] = []
    package = packaged_snapshot(source, RELEASE, lambda *step: steps.append(step))
    assert packages() == [package]
    opened = open_snapshot(package)
    assert (opened.release.name if opened.release else None, opened.tokenizer.eos_token_id) == (RELEASE, 2)
    assert list(dict.fromkeys(step[0] for step in steps)) == [
        "Reading the snapshot",
        "Packaging it for vLLM",
    ]
    assert steps[-1][1] == steps[-1][2] > 0
    # neither read nor written again
    monkeypatch.setattr(packaged_cache, "_digest", None)
    monkeypatch.setattr(packaged_cache, "package_snapshot", None)
    assert packaged_snapshot(source, RELEASE) == package
    # today's form is taken as it is
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
def test_an_interrupted_run_leaves_no_package(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(step: str, done: int, total: int) -> None:
        if step.startswith("Packaging"):
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
    monkeypatch.setattr(packaged_cache, "cache_root", lambda: file)
    with pytest.raises(DownloadError, match=r"cannot be kept in .*MODELSCOPE_CACHE.*polylm package"):
        packaged_snapshot(source, RELEASE)


def test_bad_sources(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not tell which release it is"):
        packaged_snapshot(source)
    with pytest.raises(OptionError, match="release='x' is unknown"):
        packaged_snapshot(source, "x")
    with pytest.raises(SnapshotError, match="does not exist"):
        packaged_snapshot(tmp_path / "nowhere")
