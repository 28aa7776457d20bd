"""Uploading a package to a local hub, and running it from there."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelscope_polylm.errors import OptionError, PolyLMError, SnapshotError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import resolve
from modelscope_polylm.hub.upload import upload_package
from tests.conftest import use_endpoint
from tests.writable_hub import WritableHub, serving_writable

TOKEN = "ms-5e1f0a3c-secret"
MODEL_ID = "somebody/polylm-tiny"
QUESTION = "Beijing is the capital of China.\nTranslate this sentence from English to Chinese."


@pytest.fixture
def writable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, isolated_environment: None) -> Iterator[WritableHub]:
    with serving_writable(tmp_path / "storage", TOKEN) as hub:
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        use_endpoint(monkeypatch, hub.url)
        yield hub


def test_uploaded_package_can_be_downloaded_by_its_tag_and_run(writable_hub: WritableHub, package: Path) -> None:
    seen: list[tuple[int, int]] = []
    address = upload_package(package, MODEL_ID, tag="v1.1.0", progress=lambda *sizes: seen.append(sizes))
    assert address == f"{writable_hub.url}/models/{MODEL_ID}"
    assert set(writable_hub.repositories[MODEL_ID]) == {"master", "v1.1.0"}
    assert seen[-1][0] == seen[-1][1] > 8_000_000
    folder = resolve(MODEL_ID, "v1.1.0")
    assert folder != package
    assert {file.name for file in folder.iterdir()} >= {file.name for file in package.iterdir()}
    generator = TextGenerator.load(folder, device="cpu")
    options = generator.options({})
    prompt = generator.reader.read([{"role": "user", "content": QUESTION}], options)
    assert generator.reply([prompt], options)[0].texts[0].strip() == "北京是中国的首都。"


def test_repository_is_private_and_licensed_unless_told_otherwise(writable_hub: WritableHub, package: Path) -> None:
    upload_package(package, MODEL_ID)
    created = writable_hub.created[MODEL_ID]
    assert (created["Visibility"], created["License"]) == (1, "apache-2.0")


def test_second_upload_sends_no_large_file_again(writable_hub: WritableHub, package: Path) -> None:
    upload_package(package, MODEL_ID)
    sent = sum(request.startswith("PUT /blob/") for request in writable_hub.requests)
    upload_package(package, MODEL_ID, tag="v2")
    assert sent > 0
    assert sum(request.startswith("PUT /blob/") for request in writable_hub.requests) == sent


def test_only_the_packages_files_are_sent_and_nothing_is_left_next_to_them(
    writable_hub: WritableHub, package: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(package, tmp_path / "copy")
    (folder / "private.txt").write_text("mine")
    before = {file.name for file in folder.iterdir()}
    upload_package(folder, MODEL_ID)
    uploaded = {file.name for file in writable_hub.repositories[MODEL_ID]["master"].iterdir()}
    assert "private.txt" not in uploaded
    assert {file.name for file in folder.iterdir()} == before == uploaded | {"private.txt"}


def test_token_is_in_no_message(
    writable_hub: WritableHub,
    package: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        upload_package(package, MODEL_ID)
        writable_hub.token = "another"
        with pytest.raises(PolyLMError) as error:
            upload_package(package, "somebody/else")
    assert any(TOKEN in header for header in writable_hub.authorizations)
    output = capfd.readouterr()
    assert TOKEN not in f"{error.value}{output.out}{output.err}{caplog.text}"
    assert "MODELSCOPE_API_TOKEN" in str(error.value)


def test_without_token(writable_hub: WritableHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    sys.modules["modelscope_hub.config"].set_default_config(None)
    with pytest.raises(OptionError, match="MODELSCOPE_API_TOKEN"):
        upload_package(package, MODEL_ID)
    assert writable_hub.requests == []


def test_hub_that_is_down(package: Path, monkeypatch: pytest.MonkeyPatch, refused_endpoint: str) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    use_endpoint(monkeypatch, refused_endpoint)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    with pytest.raises(PolyLMError, match="could not be reached"):
        upload_package(package, MODEL_ID)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_id": "no-owner"}, "OWNER/NAME"),
        ({"tag": "master"}, "v1.1.0"),
        ({"tag": "a b"}, "v1.1.0"),
        ({"visibility": "secret"}, "private, internal, public"),
    ],
)
def test_bad_options(package: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        upload_package(package, **{"model_id": MODEL_ID, **changed})


def test_folder_that_is_no_package(random_snapshot: Path) -> None:
    with pytest.raises(SnapshotError, match="polylm package"):
        upload_package(random_snapshot, MODEL_ID)


def test_damaged_package(package: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(package, tmp_path / "copy")
    (folder / "config.json").write_text("{}")
    with pytest.raises(SnapshotError, match=r"config\.json"):
        upload_package(folder, MODEL_ID)
