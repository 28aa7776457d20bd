"""What a download refuses before anything is fetched: listings of hostile or broken hubs, no network, a bad cache."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import DownloadError, SnapshotError
from modelscope_polylm.hub.download import SMALL_FILE_BYTES, snapshot_files
from modelscope_polylm.hub.resolve import resolve
from tests.conftest import use_endpoint
from tests.local_hub import LocalHub

MODEL = "somebody/polylm"
AT_ONCE = 5.0
"""Seconds; the client alone tries for 15."""


@pytest.fixture
def published(hub: LocalHub, random_snapshot: Path) -> LocalHub:
    hub.publish(random_snapshot, MODEL)
    return hub


def downloads(hub: LocalHub) -> list[str]:
    return [request for request in hub.requests if "FilePath=" in request]


@pytest.mark.parametrize(
    "path",
    [
        "{outside}",
        "../../../../{name}",
        "sub/../../../../../{name}",
        "config.json/../../../../../{name}",
        "..",
        "/",
        "..\\\\..\\\\{name}",
        "C:\\\\{name}",
        "C:{name}",
        "a\0b.json",
    ],
)
def test_path_outside_of_the_model_is_refused(path: str, published: LocalHub, tmp_path: Path) -> None:
    outside = tmp_path / "stolen.json"
    published.extra[path.format(outside=outside, name=outside.name)] = b"{}"
    with pytest.raises(DownloadError, match=r"which is not a path inside the model\. Nothing was downloaded: http"):
        resolve(MODEL)
    assert downloads(published) == []
    assert not list(tmp_path.parent.rglob(outside.name))


def test_path_that_only_the_second_listing_names_is_not_fetched(published: LocalHub, tmp_path: Path) -> None:
    outside = tmp_path / "stolen.json"
    published.extra |= {str(outside): b"{}", f"../../../../{outside.name}": b"{}", "late.json": b"{}"}
    published.honest_listings = 1
    folder = resolve(MODEL)
    assert published.honest_listings < 0
    assert (folder / "config.json").is_file()
    assert not list(tmp_path.parent.rglob(outside.name))
    assert not (folder / "late.json").exists()


def test_only_files_of_a_snapshot_are_fetched(published: LocalHub) -> None:
    wanted = {"ms_wrapper.py": b"", "SHA256SUMS": b"", "LICENSE": b"", "chat_template.jinja": b""}
    others = {
        "modeling_polylm.py": b"",
        "sub/config.json": b"{}",
        "photo.png": b"",
        ".hidden.json": b"{}",
        "x.zip": b"",
    }
    published.extra |= wanted | others
    folder = resolve(MODEL)
    assert {file.name for file in folder.iterdir()} >= wanted.keys()
    assert {file for file in others if (folder / file).exists()} == set()
    assert [request for request in downloads(published) if any(name in request for name in ("polylm.py", "sub/"))] == []


@pytest.mark.parametrize("size", ["many", -1, [], {}, 1e400, float("nan"), SMALL_FILE_BYTES + 1, [1]])
def test_impossible_size_is_refused(size: Any, published: LocalHub) -> None:
    published.sizes["config.json"] = size
    if size in ([], {}):  # the client takes what is empty for 0
        assert snapshot_files(MODEL)["config.json"] == 0
        return
    with pytest.raises(DownloadError, match=rf"The hub's listing of {MODEL} .*Nothing was downloaded"):
        resolve(MODEL)
    assert downloads(published) == []


def test_weights_that_no_disk_holds_are_refused(published: LocalHub) -> None:
    published.sizes["pytorch_model.bin"] = 10**18
    with pytest.raises(DownloadError, match=r"needs 1000000000\.\d+ GB more on disk"):
        resolve(MODEL)
    assert downloads(published) == []


@pytest.mark.parametrize("listing", ["config.json", [1], ["config.json"], {"config.json": 1}, [None], [[]]])
def test_listing_that_is_no_list_of_files(listing: Any, published: LocalHub) -> None:
    published.listing = listing
    with pytest.raises(DownloadError, match=rf"The hub's listing of {MODEL} cannot be read"):
        resolve(MODEL)


@pytest.mark.parametrize("listing", [[], [{"Path": "README.md", "Size": 5}]])
def test_model_that_is_no_snapshot(listing: Any, published: LocalHub) -> None:
    published.listing = listing
    with pytest.raises(SnapshotError, match=rf"{MODEL} on the hub has no config\.json"):
        resolve(MODEL)
    assert downloads(published) == []


@pytest.mark.parametrize(
    ("endpoint", "cause"),
    [("http://hub.invalid", "[Nn]ame|resolution|nodename"), ("refused", "Connection refused")],
)
def test_no_network_is_said_at_once(
    endpoint: str, cause: str, refused_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, refused_endpoint if endpoint == "refused" else endpoint)
    start = time.monotonic()
    with pytest.raises(
        DownloadError, match=rf"{MODEL} could not be downloaded: http\S+ cannot be reached: .*({cause})"
    ):
        resolve(MODEL)
    assert time.monotonic() - start < AT_ONCE


def test_cache_below_a_file_is_said_at_once(
    published: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    use_endpoint(monkeypatch, published.url)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"file/cache cannot be written \(Not a directory\)\. Set MODELSCOPE_CACHE"):
        resolve(MODEL)
    assert time.monotonic() - start < AT_ONCE
    assert published.requests == []


def test_relative_folder_that_could_be_a_hub_id(
    published: LocalHub,
    random_snapshot: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / MODEL
    folder.mkdir(parents=True)
    release = tmp_path / "damo" / "nlp_polylm_13b_text_generation"
    release.mkdir(parents=True)
    shutil.copytree(random_snapshot, folder, dirs_exist_ok=True)
    # absolute, so that ModelScope does not ask the hub for it
    assert resolve(MODEL) == folder
    assert str(resolve(f"./{MODEL}")) == MODEL
    published.publish(random_snapshot, "damo/nlp_polylm_13b_text_generation", "v1.0.3")
    with caplog.at_level(logging.WARNING):
        assert "snapshots" in resolve("damo/nlp_polylm_13b_text_generation").parts
    assert "write ./damo/nlp_polylm_13b_text_generation for the folder" in caplog.text
