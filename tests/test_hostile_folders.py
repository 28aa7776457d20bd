"""Folders that are made to take all time or memory, or to read files elsewhere, are refused in bounds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.files import path_inside
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from tests.bounds import within

JSON_FILES = ("config.json", "configuration.json", "generation_config.json")
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4750000\n"


@pytest.fixture
def folder(tmp_path: Path, random_snapshot: Path) -> Path:
    """A copy of the random snapshot that a test may change."""
    return Path(shutil.copytree(random_snapshot, tmp_path / "model"))


def refused(folder: Path, megabytes: float = 100) -> list[str]:
    """The lines with which a folder is refused, in bounds."""
    with within(seconds=3, megabytes=megabytes), pytest.raises(SnapshotError) as error:
        open_snapshot(folder)
    lines = str(error.value).splitlines()
    assert lines[0] == f"The snapshot in {folder} cannot be used:"
    assert all(len(line) < 500 for line in lines) and len(lines) < 100
    return lines[1:]


@pytest.mark.parametrize("name", ["n_layer", "n_embd", "n_positions", "vocab_size", "n_head", "n_inner"])
@pytest.mark.parametrize("size", [10**7, 10**9, 10**30])
def test_sizes_are_bounded_before_anything_is_listed(folder: Path, name: str, size: int) -> None:
    config = {**json.loads((folder / "config.json").read_text()), name: size}
    (folder / "config.json").write_text(json.dumps(config))
    assert any(
        line.startswith(f"config.json: {name} is {size}, but must be a whole number from 1 to")
        for line in refused(folder)
    )


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "content",
    {
        "lists in lists": "[" * 200_000,
        "objects in objects": '{"a":' * 200_000,
        "closed lists": "[" * 5000 + "]" * 5000,
        "a number of a million digits": "1" * 1_000_000,
        "more than 4 MiB": json.dumps({"a": "x" * (5 << 20)}),
        "Latin-1": '{"a": "\xe9"}',
        "a Git LFS pointer": POINTER,
        "nothing": "",
    }.items(),
    ids=lambda item: item[0],
)
def test_json_files(folder: Path, name: str, content: tuple[str, str]) -> None:
    (folder / name).write_text(content[1], encoding="latin-1")
    (line,) = refused(folder)
    assert name in line


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 << 30)


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", [*JSON_FILES, "tokenizer.model", "pytorch_model.bin"])
@pytest.mark.parametrize("make", [make_pipe, make_device, make_sparse, make_folder])
def test_what_is_no_file(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    (line,) = refused(folder)
    assert line.startswith(name) and ("not a regular file" in line or make is make_sparse)


def test_one_pipe_does_not_hide_another_problem(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    os.mkfifo(folder / "tokenizer.model")
    (folder / "config.json").write_text("{}")
    assert any("not a regular file" in line for line in refused(folder)) and len(refused(folder)) > 2


@pytest.mark.parametrize(
    "tail",
    {
        "group": b"\x0b\x0c",
        "group of a high number": b"\xfb\x7f\xfc\x7f",
        "end of a group": b"\x0c",
        "unknown wire type": b"\x0e",
        "long number": b"\x08" + b"\x80" * 1000,
        "cut off": b"\x0a\xff",
        "unknown field": b"\x9a\x06\x02ab",
    }.items(),
    ids=lambda item: item[0],
)
def test_fields_of_protobuf_that_are_unknown(folder: Path, tail: tuple[str, bytes]) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes() + tail[1])
    if tail[0] == "unknown field":
        assert open_snapshot(folder).tokenizer.decode(PolyLMTokenizer(path).encode("Rome")) == "Rome"
    else:
        assert any("tokenizer.model" in line for line in refused(folder))


def test_model_file_of_many_pieces(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a" * (3 << 20))
    assert any("tokenizer.model" in line for line in refused(folder, megabytes=700))
    (folder / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a" * (5 << 20))
    assert "tokenizer.model has more than 16,777,216 bytes" in refused(folder)[0]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/passwd", "../x", "a/b", "a\\b", "a\0b", "a\nb", "\ud800", "x" * 256, "東" * 100]
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(SnapshotError, match=r"is not the name of a file in the snapshot's folder"):
        path_inside(tmp_path, name)


def test_names_of_files(tmp_path: Path) -> None:
    for name in ("model.safetensors", "...", "a b", "東.bin", "x" * 255):
        assert path_inside(tmp_path, name) == tmp_path / name


def test_links_into_a_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "blobs", str(number)))
    assert open_snapshot(folder).config.layers == 2


def test_a_clone_without_lfs_names_all_its_pointers(folder: Path) -> None:
    for name in ("config.json", "tokenizer.model", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        (folder / name).write_text(POINTER)
    (line,) = refused(folder)
    names = "config.json, pytorch_model.bin, pytorch_model.bin.index.json, tokenizer.model"
    assert line.startswith(f"4 files are only Git LFS pointers: {names}. To fetch the files: run `git lfs pull` in ")
