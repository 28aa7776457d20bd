"""Packaging a snapshot of 2023: what is in the folder, and that only a complete one gets its name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import GPT2LMHeadModel

from modelscope_polylm.errors import DownloadError, OptionError, SnapshotError
from modelscope_polylm.packaging import package as packaging
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.packaging.safetensors_writer import parse_size
from modelscope_polylm.packaging.tokenizer.parity import load_converted
from modelscope_polylm.snapshot import open_snapshot
from tests.packaging.damage import compress, flip_byte
from tests.packaging.sentencepiece_models import train
from tests.small_disk import FILLER, fill, make_room, small_disk
from tests.snapshots import LAYOUTS, build_snapshot, random_model, tokenizer_bytes, write_json

FILES = {
    *("config.json", "generation_config.json", "configuration.json", "ms_wrapper.py", "requirements.txt", "README.md"),
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "LICENSE", "SHA256SUMS"),
}


pytestmark = pytest.mark.usefixtures("short_corpus")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shard_size", ["1MB", "5GB"])
def test_every_layout_keeps_every_number(layout: str, shard_size: str, tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", layout)
    report = package_snapshot(source, tmp_path / "out", release="assistant-13b", max_shard_size=shard_size)
    vocab_size = read(source, "config.json")["vocab_size"]
    expected = random_model(vocab_size).transformer.state_dict()
    found = stored_tensors(tmp_path / "out")
    assert set(found) == {f"transformer.{name}" for name in expected}
    assert all(torch.equal(found[f"transformer.{name}"], tensor) for name, tensor in expected.items())
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(shards) > 3) == (shard_size == "1MB")
    assert set(report.files) == FILES | {file.name for file in shards} | (
        {"model.safetensors.index.json"} if len(shards) > 1 else set()
    )
    assert set(report.files) == {file.name for file in (tmp_path / "out").iterdir()}


def test_shards_are_as_transformers_expects_them(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin-sharded")
    package_snapshot(source, tmp_path / "out", release="assistant-13b", max_shard_size="1MB")
    model, loading = GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = random_model(model.config.vocab_size)
    assert torch.equal(model(ids).logits, expected(ids).logits)
    index = read(tmp_path / "out", "model.safetensors.index.json")
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored_tensors(tmp_path / "out").values())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    # One tensor of the embedding's size may be larger than a shard, two tensors together may not.
    assert all(
        file.stat().st_size < 1_200_000 or list(index["weight_map"].values()).count(file.name) == 1 for file in files
    )


def test_linear_layout_is_transposed(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "safetensors")
    straight = stored_tensors(source)
    transposed = {
        name: t.t().contiguous() if "_proj.w" in name or "c_attn.w" in name or "c_fc.w" in name else t
        for name, t in straight.items()
    }
    from safetensors.torch import save_file

    save_file(transposed, source / "model.safetensors", metadata={"format": "pt"})
    package_snapshot(source, tmp_path / "out", release="assistant-13b")
    found = stored_tensors(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in straight.items())


def test_settings_are_those_that_engines_need(random_snapshot: Path, tmp_path: Path) -> None:
    package_snapshot(random_snapshot, tmp_path / "out", dtype="bfloat16", release="multialpaca-13b")
    config = read(tmp_path / "out", "config.json")
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert (config["torch_dtype"], config["dtype"]) == ("bfloat16", "bfloat16")
    generation = read(tmp_path / "out", "generation_config.json")
    assert (generation["eos_token_id"], generation["top_p"], generation["max_length"]) == (2, 0.8, 1024)
    configuration = read(tmp_path / "out", "configuration.json")
    assert configuration["framework"] == "pytorch"
    assert configuration["task"] == "text-generation"
    assert configuration["model"]["type"] == "polylm"
    assert configuration["pipeline"]["type"] == "polylm-text-generation"
    assert configuration["preprocessor"]["type"] == "polylm-tokenizer"
    assert configuration["allow_remote"] is True
    assert (tmp_path / "out" / "ms_wrapper.py").read_text().startswith("import modelscope_polylm")
    assert (tmp_path / "out" / "requirements.txt").read_text().startswith("modelscope-polylm>=")
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "out").values()} == {torch.bfloat16}


def test_package_opens_as_the_release_that_it_was(random_snapshot: Path, tmp_path: Path) -> None:
    package_snapshot(random_snapshot, tmp_path / "out", release="assistant-13b")
    snapshot = open_snapshot(tmp_path / "out")
    assert snapshot.release is not None
    assert (snapshot.release.name, snapshot.prompt_format.name) == ("assistant-13b", "assistant")
    assert snapshot.generation["num_beams"] == 4
    again = package_snapshot(tmp_path / "out", tmp_path / "again")
    assert (again.folder / "config.json").read_text() == (tmp_path / "out" / "config.json").read_text()


def test_model_card(random_snapshot: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    package_snapshot(random_snapshot, tmp_path / "out", release="assistant-13b", dtype="float16")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "apache-2.0"
    assert len(values["language"]) == 18
    assert values["base_model"] == "DAMO-NLP-MT/polylm-chat-13b"
    assert {"polylm", "text-generation"} <= set(values["tags"])
    assert values["tasks"] == ["text-generation"]
    assert "<|user|>⏎QUESTION⏎<|assistant|>⏎" in text
    assert "split_special_tokens" in text
    assert "float16" in text.split("## To know")[1]


def test_checksums_are_right_and_of_every_file(random_snapshot: Path, tmp_path: Path) -> None:
    report = package_snapshot(random_snapshot, tmp_path / "out", release="assistant-13b", max_shard_size="1MB")
    lines = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    listed = {name: sha256 for sha256, name in (line.split("  ") for line in lines)}
    assert set(listed) == {file.name for file in (tmp_path / "out").iterdir()} - {"SHA256SUMS"}
    for name, sha256 in listed.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == sha256 == report.files[name]


def test_code_next_to_the_source_is_neither_run_nor_copied(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source")
    (source / "modeling_polylm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (source / "ms_wrapper.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = read(source, "config.json")
    auto_map = {"AutoModelForCausalLM": "modeling_polylm.PolyLMHeadModel"}
    write_json(source / "config.json", {**config, "architectures": ["PolyLMHeadModel"], "auto_map": auto_map})
    report = package_snapshot(source, tmp_path / "out", release="13b")
    assert not (tmp_path / "ran").exists()
    assert [file.name for file in (tmp_path / "out").glob("*.py")] == ["ms_wrapper.py"]
    assert "modelscope_polylm" in (tmp_path / "out" / "ms_wrapper.py").read_text()
    assert "auto_map" not in read(tmp_path / "out", "config.json")
    assert any("PolyLMHeadModel" in warning for warning in report.warnings)


def test_progress_counts_every_byte_once(random_snapshot: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    package_snapshot(
        random_snapshot,
        tmp_path / "out",
        release="13b",
        max_shard_size="1MB",
        progress=lambda *sizes: seen.append(sizes),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in stored_tensors(tmp_path / "out").values())


def test_an_embedding_that_is_not_the_head_is_told(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin")
    stored = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({**stored, "lm_head.weight": stored["transformer.wte.weight"] + 1}, source / "pytorch_model.bin")
    report = package_snapshot(source, tmp_path / "out", release="13b")
    assert any("lm_head" in warning for warning in report.warnings)
    assert "lm_head" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def spoil(folder: Path, tensor: str, value: float, dtype: torch.dtype = torch.float32) -> None:
    """Put a value into the middle of a tensor of a snapshot with one .bin file, and store all of it in a dtype."""
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    converted = {name: part.to(dtype) if part.is_floating_point() else part for name, part in stored.items()}
    spoiled = converted[f"transformer.{tensor}"].view(-1)
    spoiled[len(spoiled) // 2] = value
    torch.save(converted, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("value", "stored", "dtype", "reason"),
    [
        (float("inf"), torch.float32, "bfloat16", "NaN or infinity"),
        (1e6, torch.float32, "float16", "beyond its range"),
        (1e39, torch.float64, "bfloat16", "beyond its range"),
        (1e39, torch.float64, "float32", "beyond its range"),
    ],
)
def test_numbers_that_a_type_cannot_hold(
    value: float, stored: torch.dtype, dtype: str, reason: str, tmp_path: Path
) -> None:
    source = build_snapshot(tmp_path / "source", "bin")
    spoil(source, "h.1.mlp.c_fc.bias", value, stored)
    with pytest.raises(SnapshotError, match=rf"h\.1\.mlp\.c_fc\.bias .*{dtype}.*{reason}"):
        package_snapshot(source, tmp_path / "out", dtype=dtype, release="13b")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensor", "value", "stored"),
    [
        ("wte.weight", float("nan"), torch.float32),
        ("wpe.weight", float("inf"), torch.bfloat16),
        ("h.0.attn.c_attn.weight", float("-inf"), torch.float16),
        ("ln_f.bias", float("nan"), torch.float16),
        ("h.1.ln_2.weight", float("-inf"), torch.bfloat16),
    ],
)
def test_weights_that_are_not_finite_are_refused_in_every_type(
    tensor: str, value: float, stored: torch.dtype, tmp_path: Path
) -> None:
    source = build_snapshot(tmp_path / "source", "bin")
    spoil(source, tensor, value, stored)
    with pytest.raises(SnapshotError, match=rf"Tensor {tensor} cannot be written as .*NaN or infinity"):
        package_snapshot(source, tmp_path / "out", release="13b")
    assert not (tmp_path / "out").exists()


def test_damaged_record_is_refused(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin-sharded")
    flip_byte(source / "pytorch_model-00002-of-00003.bin")
    open_snapshot(source)  # the headers are right
    with pytest.raises(SnapshotError, match=r"pytorch_model-00002-of-00003\.bin is damaged.*record .*/data/\d+"):
        package_snapshot(source, tmp_path / "out", release="13b")
    assert not (tmp_path / "out").exists()


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin")
    compress(source / "pytorch_model.bin")
    with pytest.raises(SnapshotError, match=r"pytorch_model\.bin is compressed"):
        package_snapshot(source, tmp_path / "out", release="13b")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"release": "14b"}, "14b"),
        ({"release": None}, "multialpaca-13b"),
        ({"dtype": "int8"}, "bfloat16"),
        ({"max_shard_size": "many"}, "5GB"),
        ({"max_shard_size": "10"}, "1MB"),
    ],
)
def test_bad_options(random_snapshot: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        package_snapshot(random_snapshot, tmp_path / "out", **{"release": "13b", **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 gib", 3 << 29), ("500MB", 5 * 10**8), (2000000, 2000000)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_incomplete_and_corrupt_sources(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin-sharded")
    shard = source / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:5000])
    (source / "tokenizer.model").unlink()
    with pytest.raises(SnapshotError, match=r"tokenizer\.model") as error:
        package_snapshot(source, tmp_path / "out", release="13b")
    assert shard.name in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tokenizer_of_an_unknown_type(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", tokenizer=train(2000, model_type="char"))
    with pytest.raises(SnapshotError, match="model type is char"):
        package_snapshot(source, tmp_path / "out", release="13b")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("normalizer", "kind", "strict", "stops"),
    [
        ("identity", "natural en", False, True),
        ("identity", "random Unicode", False, True),
        ("nmt_nfkc", "natural en", False, True),
        ("nmt_nfkc", "random Unicode", False, False),
        ("nmt_nfkc", "random Unicode", True, True),
    ],
)
def test_which_differences_stop(
    normalizer: str, kind: str, strict: bool, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(content: str) -> Any:
        values = json.loads(content)
        values["normalizer"] = {"type": "Replace", "pattern": {"String": "é"}, "content": "e"}
        return load_converted(json.dumps(values))

    monkeypatch.setattr("modelscope_polylm.packaging.tokenizer.convert.load_converted", spoiled)
    texts = [("natural fr", "Paris"), (kind, "café")]
    monkeypatch.setattr("modelscope_polylm.packaging.tokenizer.parity.corpus_strings", lambda: iter(texts))
    tokenizer = train(
        2000, model_type="bpe", byte_fallback=True, add_dummy_prefix=False, normalization_rule_name=normalizer
    )
    source = build_snapshot(tmp_path / "source", tokenizer=tokenizer)
    if stops:
        with pytest.raises(SnapshotError, match="'café'"):
            package_snapshot(source, tmp_path / "out", release="13b", strict=strict)
        assert not (tmp_path / "out").exists()
        return
    report = package_snapshot(source, tmp_path / "out", release="13b", strict=strict)
    assert len(report.parity.faults) == 1
    assert "café" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_what_is_there_is_overwritten_only_by_force(random_snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    package_snapshot(random_snapshot, out, release="13b")
    (out / "mine.txt").write_text("note")
    with pytest.raises(OptionError, match="--force"):
        package_snapshot(random_snapshot, out, release="13b")
    assert (out / "mine.txt").exists()
    package_snapshot(random_snapshot, out, release="assistant-13b", force=True)
    assert not (out / "mine.txt").exists()
    assert read(out, "configuration.json")["release"] == "assistant-13b"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_does_not_delete_what_is_no_model(random_snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="does not hold a model"):
        package_snapshot(random_snapshot, tmp_path / "out", release="13b", force=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_folders_of_others_next_to_the_package_are_left_alone(random_snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"out\.partial"):
        package_snapshot(random_snapshot, tmp_path / "out", release="13b")
    package_snapshot(random_snapshot, tmp_path / "second", release="13b")
    (tmp_path / "second.replaced").mkdir()
    with pytest.raises(OptionError, match=r"second\.replaced"):
        package_snapshot(random_snapshot, tmp_path / "second", release="13b", force=True)
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


@pytest.mark.parametrize("relative", [".", "inside", ".."])
def test_source_is_never_written_over(relative: str, tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "folder" / "source")
    before = {file.name: file.stat().st_mtime_ns for file in source.iterdir()}
    with pytest.raises(OptionError, match="overlaps"):
        package_snapshot(source, source / relative, release="13b", force=True)
    assert {file.name: file.stat().st_mtime_ns for file in source.iterdir()} == before


def test_full_disk(random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard = packaging.write_shard

    def full(shard: Any, *arguments: Any) -> str:
        if shard.name.startswith("model-00003"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_shard(shard, *arguments)

    with monkeypatch.context() as small:
        small.setattr(packaging, "write_shard", full)
        with pytest.raises(DownloadError, match="disk is full"):
            package_snapshot(random_snapshot, tmp_path / "out", release="13b", max_shard_size="1MB")
    assert not (tmp_path / "out").exists()
    report = package_snapshot(random_snapshot, tmp_path / "out", release="13b", max_shard_size="1MB")
    assert len(report.resumed) == 2


def test_disk_that_is_really_full(random_snapshot: Path, tmp_path: Path) -> None:
    straight = package_snapshot(random_snapshot, tmp_path / "straight", release="13b", max_shard_size="1MB")
    with small_disk(tmp_path / "disk", packaging.SMALL_FILES_BYTES + 2 * straight.size) as disk:
        written: list[int] = []

        def others_write_too(done: int, total: int) -> None:
            written.append(done)
            if done > total // 2 and not (disk / FILLER).exists():
                fill(disk)

        with pytest.raises(DownloadError, match=r"disk is full .*No space left on device.*continues"):
            package_snapshot(
                random_snapshot, disk / "out", release="13b", max_shard_size="1MB", progress=others_write_too
            )
        assert written[-1] > 0
        assert not (disk / "out").exists()
        make_room(disk)
        report = package_snapshot(random_snapshot, disk / "out", release="13b", max_shard_size="1MB")
        assert report.resumed
        assert report.files == straight.files


def test_two_runs_into_one_folder(random_snapshot: Path, tmp_path: Path) -> None:
    refusals: list[str] = []

    def another_run(done: int, total: int) -> None:
        if not refusals:
            with pytest.raises(OptionError) as refused:
                package_snapshot(random_snapshot, tmp_path / "out", release="13b", max_shard_size="1MB")
            refusals.append(str(refused.value))

    report = package_snapshot(
        random_snapshot, tmp_path / "out", release="13b", max_shard_size="1MB", progress=another_run
    )
    assert refusals == [f"Another run is writing {tmp_path / 'out'}: wait for its end, or name another folder."]
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(report.files)


def test_two_processes_into_one_folder(random_snapshot: Path, tmp_path: Path) -> None:
    code = WAITING.format(source=str(random_snapshot), out=str(tmp_path / "out"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], **pipes)
    assert first.stdout is not None
    assert first.stdout.readline() == "writing\n"
    with pytest.raises(OptionError, match="Another run is writing"):
        package_snapshot(random_snapshot, tmp_path / "out", release="13b")
    first.communicate("go on\n", timeout=120)
    assert first.returncode == 0
    assert (tmp_path / "out" / "SHA256SUMS").is_file()


WAITING = """
from modelscope_polylm.packaging import package
from modelscope_polylm.packaging.tokenizer import convert
from modelscope_polylm.packaging.tokenizer.parity import ParityReport

def progress(done, total, asked=[]):
    if not asked:
        asked.append(print("writing", flush=True))
        input()

convert.compare_tokenizers = lambda *arguments: ParityReport()
package.package_snapshot({source!r}, {out!r}, release="13b", progress=progress)
"""


def test_a_package_that_another_run_has_just_finished_is_kept(
    random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = packaging.plan_shards

    def after_another_run(*arguments: Any) -> Any:
        monkeypatch.setattr(packaging, "plan_shards", plan)
        package_snapshot(random_snapshot, tmp_path / "out", dtype="bfloat16", release="13b")
        return plan(*arguments)

    monkeypatch.setattr(packaging, "plan_shards", after_another_run)
    with pytest.raises(OptionError, match="is not empty"):
        package_snapshot(random_snapshot, tmp_path / "out", release="13b")
    assert read(tmp_path / "out", "config.json")["dtype"] == "bfloat16"


def test_a_run_that_failed_lets_the_next_one_in(random_snapshot: Path, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop") as kept:
        package_snapshot(random_snapshot, tmp_path / "out", release="13b", progress=fail)
    package_snapshot(random_snapshot, tmp_path / "out", release="13b")
    assert kept.tb is not None  # which holds everything of the run that failed


def test_disk_that_is_too_small_is_noticed_before_anything_is_written(
    random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = packaging.SMALL_FILES_BYTES  # enough for the other files, not for the weights, too
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, free))
    needed = (
        r"needs 0\.112 GB more \(0\.007 GB for weights and 0\.105 GB for other files\), but only 0\.105 GB are free"
    )
    with pytest.raises(DownloadError, match=needed):
        package_snapshot(random_snapshot, tmp_path / "out", release="13b")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_disk_that_does_not_keep_what_is_written(
    random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = packaging.write_shard

    def flip(shard: Any, source: Any, folder: Path, progress: Any) -> str:
        sha256 = write_shard(shard, source, folder, progress)
        content = bytearray((folder / shard.name).read_bytes())
        content[-1] ^= 1
        (folder / shard.name).write_bytes(content)
        return sha256

    monkeypatch.setattr(packaging, "write_shard", flip)
    with pytest.raises(DownloadError, match="disk may be failing"):
        package_snapshot(random_snapshot, tmp_path / "out", release="13b")
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from modelscope_polylm.packaging import package, staging
from modelscope_polylm.packaging.tokenizer import convert
from modelscope_polylm.packaging.tokenizer.parity import ParityReport

share, step, force = float(sys.argv[3]), sys.argv[4], "--force" in sys.argv

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(done, total):
    if done >= share * total:
        die()

if step == "before-publish":
    staging.StagingFolder.publish = die
if step == "rename":
    replace = os.replace
    os.replace = lambda source, target: die() if str(target) == sys.argv[2] else replace(source, target)
if step == "removal":
    def remove(folder, ignore_errors):
        os.unlink(os.path.join(folder, "config.json"))
        die()
    staging.shutil.rmtree = remove
if step == "card":
    package.model_card = die
if step == "tokenizer":
    package.write_tokenizer = die
convert.compare_tokenizers = lambda *arguments: ParityReport()
package.package_snapshot(
    sys.argv[1], sys.argv[2], release="13b", max_shard_size="1MB", progress=progress, force=force
)
"""


def killed_while_replacing(step: str, source: Path, out: Path) -> dict[str, bytes]:
    """Kill a run with --force at a step of the replacement; returns the contents of the package that it replaced."""
    package_snapshot(source, out, release="assistant-13b")
    before = contents(out)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(out), "2", step, "--force"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert killed.returncode == -9, killed.stderr
    assert out.with_name("out.replaced").is_dir()
    return before


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_run_that_is_killed_between_the_renames_is_undone(random_snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = killed_while_replacing("rename", random_snapshot, out)
    assert not out.exists()
    with pytest.raises(OptionError, match="is not empty"):
        package_snapshot(random_snapshot, out, release="13b", max_shard_size="1MB")
    assert contents(out) == before
    report = package_snapshot(random_snapshot, out, release="13b", max_shard_size="1MB", force=True)
    assert report.resumed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert set(contents(out)) == set(report.files)


def test_run_that_is_killed_while_it_removes_the_old_package_is_finished(random_snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_while_replacing("removal", random_snapshot, out)
    assert read(out, "configuration.json")["release"] == "13b"
    report = package_snapshot(random_snapshot, out, release="assistant-13b", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert set(contents(out)) == set(report.files)
    assert read(out, "configuration.json")["release"] == "assistant-13b"


def test_another_folder_is_not_taken_for_the_replaced_package(random_snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_while_replacing("removal", random_snapshot, out)
    (tmp_path / "out.replaced").rename(tmp_path / "moved")
    (tmp_path / "out.replaced").mkdir()
    (tmp_path / "out.replaced" / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"out\.replaced"):
        package_snapshot(random_snapshot, out, release="13b", force=True)
    assert (tmp_path / "out.replaced" / "thesis.tex").exists()


@pytest.mark.parametrize("undo_fails", [False, True])
def test_old_package_is_not_lost_if_the_new_one_cannot_get_its_name(
    undo_fails: bool, random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, set_aside = tmp_path / "out", tmp_path / "out.replaced"
    package_snapshot(random_snapshot, out, release="assistant-13b")
    before = contents(out)
    real_replace, real_rename = os.replace, Path.rename

    def replace(source: Any, target: Any) -> None:
        if target == out:
            raise OSError(errno.EIO, "Input/output error")
        real_replace(source, target)

    def rename(path: Path, target: Path) -> Path:
        if path == set_aside and undo_fails:
            raise OSError(errno.EIO, "Input/output error")
        return real_rename(path, target)

    where = rf"is now {set_aside}" if undo_fails else "is still there"
    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", replace)
        failing.setattr(Path, "rename", rename)
        with pytest.raises(DownloadError, match=rf"cannot be renamed to .*The earlier package {where}"):
            package_snapshot(random_snapshot, out, release="13b", force=True)
    assert contents(set_aside if undo_fails else out) == before
    if undo_fails:
        set_aside.rename(out)
    assert package_snapshot(random_snapshot, out, release="13b", force=True).resumed


def test_every_file_and_folder_is_flushed_to_the_disk(
    random_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[tuple[int, int]] = set()
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        flushed.add((found.st_dev, found.st_ino))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    package_snapshot(random_snapshot, tmp_path / "out", release="13b", max_shard_size="1MB")
    needed = [tmp_path, tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert [path.name for path in needed if (path.stat().st_dev, path.stat().st_ino) not in flushed] == []


@pytest.mark.parametrize(
    ("share", "step", "resumes"),
    [
        (2, "tokenizer", False),
        (0, "weights", False),
        (0.5, "weights", True),
        (0.97, "weights", True),
        (2, "card", True),
        (2, "before-publish", True),
    ],
)
def test_killed_run_leaves_nothing_that_looks_complete_and_is_continued(
    share: float, step: str, resumes: bool, random_snapshot: Path, tmp_path: Path
) -> None:
    straight = package_snapshot(random_snapshot, tmp_path / "straight", release="13b", max_shard_size="1MB")
    arguments = [sys.executable, "-c", KILLED, str(random_snapshot), str(tmp_path / "out"), str(share), step]
    killed = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "out").exists()
    report = package_snapshot(random_snapshot, tmp_path / "out", release="13b", max_shard_size="1MB")
    assert bool(report.resumed) == resumes
    assert report.files == straight.files
    assert {path.name for path in tmp_path.iterdir()} == {"straight", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(straight.files)


def test_an_unfinished_run_with_other_settings_is_not_continued(random_snapshot: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(random_snapshot), str(tmp_path / "out"), "2", "card"]
    subprocess.run(arguments, capture_output=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "out.partial").is_dir()
    report = package_snapshot(random_snapshot, tmp_path / "out", dtype="bfloat16", release="13b", max_shard_size="1MB")
    assert report.resumed == []


def test_damaged_leftovers_are_written_again(random_snapshot: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(random_snapshot), str(tmp_path / "out"), "2", "card"]
    subprocess.run(arguments, capture_output=True, cwd=Path(__file__).parents[2])
    shard = next((tmp_path / "out.partial").glob("model-00001-of*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    report = package_snapshot(random_snapshot, tmp_path / "out", release="13b", max_shard_size="1MB")
    assert shard.name not in report.resumed
    assert report.resumed
    assert len(stored_tensors(tmp_path / "out")) == 28


def test_tokenizer_bytes_are_kept(random_snapshot: Path, tmp_path: Path) -> None:
    package_snapshot(random_snapshot, tmp_path / "out", release="13b")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer_bytes()
