"""Damaged files of every kind open or raise a SnapshotError: mutants by fixed seeds, 3,500 of them in the slow run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from modelscope_polylm.errors import InputError, SnapshotError
from modelscope_polylm.network.weight_formats import read_headers
from modelscope_polylm.snapshot import open_snapshot
from tests.bounds import within
from tests.snapshots import build_snapshot

CPU = torch.device("cpu")
FEW, MANY = 40, 500
SIZES = {"width": 16, "heads": 2, "layers": 1, "positions": 16, "vocab_size": 512}
FILES = {
    "config": ("bin", "config.json"),
    "generation_config": ("bin", "generation_config.json"),
    "index": ("safetensors-sharded", "model.safetensors.index.json"),
    "tokenizer": ("bin", "tokenizer.model"),
    "zip": ("bin", "pytorch_model.bin"),
    "older": ("bin", "pytorch_model.bin"),
    "safetensors": ("safetensors", "model.safetensors"),
}
"""Layout of the snapshot, and the file that is changed."""
# Instructions of pickles, signatures of zips, fields of protobuf, and numbers that are large.
PIECES = [
    *(b"R", b"b", b"Q", b"c", b"(", b"t", b"u", b".", b"\x85", b"\x89", b"q\x00", b"h\x00", b"r\xff\xff\xff\x7f"),
    *(
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"K\xff",
        b"J\xff\xff\xff\xff",
        b"cos\nsystem\n",
        b"X\xff\xff\xff\x7f",
    ),
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"\x00" * 8, b"\xff" * 8, b"\x08\x00"),
    *(
        b"\x0a",
        b"\x0b",
        b"\x0c",
        b"\x0e",
        b"\x12\x7f",
        b"\x1a\x00",
        b"\x80" * 11,
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"-1",
        b"1e400",
    ),
]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["gpt2", "../x", "/dev/zero", "x" * 5000, "GPT2LMHeadModel", 0, 1, 2, 255, 256, 512, 10**9]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_bytes(draw: st.DrawFn, original: bytes, positions: Sequence[int]) -> bytes:
    """A file with a few bytes replaced, put in, or taken out at some of the positions, and perhaps cut off."""
    content = original
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.sampled_from(positions))
        piece = draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4))
        removed = draw(st.sampled_from([len(piece)] * 6 + [0, 1, 16, 1000]))
        content = content[:position] + piece + content[position + removed :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


def positions_of_structure(file: Path) -> list[int]:
    """Where a file holds something other than the numbers of tensors, which may be anything."""
    free = bytearray(file.stat().st_size)
    if file.suffix in (".bin", ".safetensors"):
        for header in read_headers(file).values():
            free[header.start : header.start + header.nbytes] = bytes([1]) * header.nbytes
    return [position for position, is_number in enumerate(free) if not is_number]


@st.composite
def changed_json(draw: st.DrawFn, original: bytes, positions: Sequence[int]) -> bytes:
    """An object with a few values changed, put in, or taken out; now and then what is not JSON."""
    value: dict[str, Any] = json.loads(original)
    for _ in range(draw(st.integers(1, 4))):
        target = value
        if draw(st.booleans()) and isinstance(value.get("weight_map"), dict):
            target = value["weight_map"]
        name = draw(st.sampled_from([*sorted(target), "n_inner", "eos_token_id"]) | st.text(max_size=8))
        target.pop(name, None)
        if draw(st.integers(0, 4)):
            target[name] = draw(JSON_VALUES)
    written = json.dumps(value).encode()
    return draw(changed_bytes(written, range(len(written)))) if draw(st.integers(0, 4)) == 0 else written


def build(folder: Path, kind: str) -> Path:
    """A small snapshot; returns the file that is to be changed."""
    layout, name = FILES[kind]
    build_snapshot(folder, layout, **SIZES)
    if kind == "older":
        tensors = torch.load(folder / name, weights_only=True)
        torch.save(tensors, folder / name, _use_new_zipfile_serialization=False)
    if kind == "generation_config":
        (folder / name).write_text(
            json.dumps({"max_new_tokens": 8, "do_sample": True, "top_p": 0.9, "eos_token_id": 2})
        )
    return folder / name


def use(folder: Path) -> None:
    """Open a folder, load its weights, and cut a text into tokens."""
    snapshot = open_snapshot(folder)
    snapshot.weight_files.load(snapshot.config, CPU, torch.float32)
    with contextlib.suppress(InputError):  # a damaged model file may have no pieces for a text
        ids = snapshot.tokenizer.encode("Rome is\nthe capital 北京 of Italy.")
        snapshot.tokenizer.decode(ids, skip_special_tokens=True)


def check_mutants(folder: Path, kind: str, count: int) -> None:
    file = build(folder, kind)
    use(folder)
    original = file.read_bytes()
    change: Callable[..., st.SearchStrategy[bytes]] = changed_json if file.suffix == ".json" else changed_bytes
    outcomes = {"opened": 0, "refused": 0}

    @seed(20)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(change(original, positions_of_structure(file)))
    def check(mutant: bytes) -> None:
        file.write_bytes(mutant)
        try:
            use(folder)
            outcomes["opened"] += 1
        except SnapshotError as error:
            outcomes["refused"] += 1
            assert str(error).startswith("The ") and len(str(error)) < 50_000

    with within(seconds=count, megabytes=700):
        check()
    print(f"{kind}: {outcomes}")
    assert outcomes["refused"] > count / 10


@pytest.mark.parametrize("kind", FILES)
def test_few_mutants(tmp_path: Path, kind: str) -> None:
    check_mutants(tmp_path, kind, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_many_mutants(tmp_path: Path, kind: str) -> None:
    check_mutants(tmp_path, kind, MANY)
