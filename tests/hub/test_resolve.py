"""Names of models become folders: from disk, from the cache without a request, or from the hub despite its faults."""

from __future__ import annotations

import builtins
import errno
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import DownloadError, SnapshotError
from modelscope_polylm.hub import resolve as resolve_module
from modelscope_polylm.hub.download import download_size
from modelscope_polylm.hub.resolve import missing_files, resolve
from modelscope_polylm.snapshot import open_snapshot
from tests.local_hub import LocalHub
from tests.snapshots import build_snapshot

ASSISTANT = "damo/nlp_polylm_assistant_13b_text_generation"
WEIGHTS = "pytorch_model.bin"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses between tries, which grow to seconds, take no time."""
    from modelscope_hub import _download, _download_control

    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.01)))
    monkeypatch.setattr(_download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0.01)
    monkeypatch.setattr(_download_control._DownloadControl, "sleep", lambda control, seconds: pause(min(seconds, 0.01)))


@pytest.fixture
def published(hub: LocalHub, random_snapshot: Path) -> LocalHub:
    hub.publish(random_snapshot, ASSISTANT, "v1.0.0", "master")
    return hub


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in other.iterdir())
    return names == sorted(path.name for path in one.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_folder_is_itself(random_snapshot: Path) -> None:
    assert resolve(random_snapshot) == random_snapshot
    assert resolve(str(random_snapshot)) == random_snapshot


def test_home_is_expanded(home: Path) -> None:
    (home / "my-model").mkdir(exist_ok=True)
    assert resolve("~/my-model") == home / "my-model"


def test_tiny_is_bundled() -> None:
    assert resolve("tiny") == Path(resolve_module.__file__).parents[1] / "tiny"


def test_folder_named_like_a_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, random_snapshot: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resolve("tiny") == resolve_module.TINY_FOLDER
    shutil.copytree(random_snapshot, tmp_path / "tiny", dirs_exist_ok=True)
    assert resolve("tiny") == Path("tiny")


@pytest.mark.parametrize(
    "name", ["/no/such", "./model", "~/nowhere", "a/b/c", "assistant13b", "", " ", "a/..", None, 5]
)
def test_impossible_name(name: Any) -> None:
    with pytest.raises(SnapshotError, match=r"is no folder, no release .* and no hub id"):
        resolve(name)


def test_nearest_release_is_named() -> None:
    with pytest.raises(SnapshotError, match=r"Did you mean assistant-13b\?"):
        resolve("asistant-13b")


@pytest.mark.parametrize("name", ["assistant-13b", ASSISTANT, "DAMO-NLP-MT/polylm-chat-13b"])
def test_cold_cache(published: LocalHub, random_snapshot: Path, name: str) -> None:
    folder = resolve(name)
    assert same_files(folder, random_snapshot)
    assert folder.name == "v1.0.0"
    snapshot = open_snapshot(folder)
    assert snapshot.release is not None and snapshot.release.name == "assistant-13b"


def test_named_revision(hub: LocalHub, random_snapshot: Path) -> None:
    hub.publish(random_snapshot, "someone/fine-tuned", "v2", "master")
    assert resolve("someone/fine-tuned", revision="v2").name == "v2"
    assert resolve("someone/fine-tuned", revision="master").name == "master"


def test_another_owner_is_not_redirected(hub: LocalHub, random_snapshot: Path) -> None:
    own = hub.publish(random_snapshot, "someone/nlp_polylm_assistant_13b_text_generation")
    assert "someone--" in str(resolve(own))


def test_warm_cache_makes_no_request(published: LocalHub) -> None:
    folder = resolve(ASSISTANT)
    published.requests.clear()
    assert resolve(ASSISTANT) == resolve("assistant-13b") == resolve(ASSISTANT, local_files_only=True) == folder
    assert published.requests == []


def test_cached_default_branch_serves_a_release(published: LocalHub) -> None:
    folder = resolve(ASSISTANT, revision="master")
    assert resolve("assistant-13b", local_files_only=True) == folder


@pytest.mark.parametrize("suffix", ["", ".incomplete"])
def test_interrupted_download_is_continued(published: LocalHub, random_snapshot: Path, suffix: str) -> None:
    folder = resolve(ASSISTANT)
    weights = folder / WEIGHTS
    whole = weights.read_bytes()
    weights.unlink()
    if suffix:
        (folder / f"{WEIGHTS}{suffix}").write_bytes(whole[:1000])
    published.requests.clear()
    assert same_files(resolve(ASSISTANT), random_snapshot)
    assert len(published.file_requests(WEIGHTS)) == 1
    assert published.file_requests("tokenizer.model") == []


def test_missing_shard_is_downloaded(hub: LocalHub, tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "sharded", "safetensors-sharded")
    hub.publish(source, ASSISTANT, "v1.0.0")
    folder = resolve(ASSISTANT)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DownloadError, match=r"incomplete .*model-00002-of-00003\.safetensors is missing"):
        resolve(ASSISTANT, local_files_only=True)
    assert same_files(resolve(ASSISTANT), source)


def test_configuration_alone_is_not_a_copy(published: LocalHub, random_snapshot: Path) -> None:
    from modelscope.hub.file_download import model_file_download

    model_file_download(ASSISTANT, "configuration.json", revision="v1.0.0")
    assert same_files(resolve(ASSISTANT), random_snapshot)


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connection_is_resumed(published: LocalHub, random_snapshot: Path, ranges: bool) -> None:
    published.cut[WEIGHTS] = 200_000
    published.ranges = ranges
    assert same_files(resolve(ASSISTANT), random_snapshot)
    assert len(published.file_requests(WEIGHTS)) == 2


def test_damaged_file_is_refused_and_not_kept(published: LocalHub, random_snapshot: Path) -> None:
    published.flipped.add(WEIGHTS)
    with pytest.raises(DownloadError, match=rf"{ASSISTANT} at v1\.0\.0 arrived damaged.*{WEIGHTS}"):
        resolve(ASSISTANT)
    with pytest.raises(DownloadError, match="incomplete"):
        resolve(ASSISTANT, local_files_only=True)
    cache = resolve_module._cached(ASSISTANT, "v1.0.0")
    assert cache is not None and not list(cache.glob(f"{WEIGHTS}*"))
    published.flipped.clear()
    assert same_files(resolve(ASSISTANT), random_snapshot)


def test_no_network_and_no_copy() -> None:
    with pytest.raises(DownloadError, match=r"could not be downloaded: .*Connection refused\. .*Check the network"):
        resolve(ASSISTANT)


def test_nothing_cached_and_nothing_allowed(hub: LocalHub) -> None:
    with pytest.raises(DownloadError, match=rf"not in the cache.* --model {ASSISTANT} --revision v1\.0\.0"):
        resolve(ASSISTANT, local_files_only=True)
    assert hub.requests == []


def test_unknown_model(hub: LocalHub) -> None:
    with pytest.raises(DownloadError, match="no folder someone/unknown, and the hub has no public model"):
        resolve("someone/unknown")


def test_unknown_revision_lists_those_that_exist(published: LocalHub) -> None:
    with pytest.raises(DownloadError, match=r"has no revision v9: choose one of v1\.0\.0, master"):
        resolve(ASSISTANT, revision="v9")


def test_full_disk(published: LocalHub, random_snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = builtins.open

    def open_on_full_disk(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = real_open(file, mode, *args, **options)
        if str(file).endswith(f"{WEIGHTS}.incomplete") and mode[0] in "wa":
            opened.close()
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return opened

    with monkeypatch.context() as full:
        full.setattr(builtins, "open", open_on_full_disk)
        with pytest.raises(DownloadError, match=r"disk with .* is full .*MODELSCOPE_CACHE"):
            resolve(ASSISTANT)
    assert same_files(resolve(ASSISTANT), random_snapshot)


def test_too_little_space_is_said_before_the_download(published: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"needs 0\.007 GB more on disk, but only 0\.001 GB are free"):
        resolve(ASSISTANT)
    assert published.file_requests(WEIGHTS) == []


def test_cache_that_cannot_be_written(published: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DownloadError, match=r"cannot be written \(Permission denied\)\. Set MODELSCOPE_CACHE"):
        resolve(ASSISTANT)


def test_download_size(published: LocalHub, random_snapshot: Path) -> None:
    assert download_size(ASSISTANT, "v1.0.0") == sum(path.stat().st_size for path in random_snapshot.iterdir())


def test_missing_files_of_a_complete_folder(random_snapshot: Path) -> None:
    assert missing_files(random_snapshot) == []
