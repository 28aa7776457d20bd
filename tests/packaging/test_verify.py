"""What `verify_snapshot` says about good and bad snapshots."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.hub.upload import upload_package
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.packaging.verify import (
    Finding,
    VerifyReport,
    check_hashes,
    render_report,
    verify_snapshot,
)
from tests.packaging.damage import compress, flip_byte
from tests.snapshots import build_snapshot, write_json


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    """A package that may be spoiled."""
    return shutil.copytree(package, tmp_path / "copy")


def findings(report: VerifyReport, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]


def change(file: Path, **values: Any) -> None:
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **values})


def test_package_of_the_tiny_snapshot_has_no_faults(package: Path) -> None:
    seen: list[Finding] = []
    report = verify_snapshot(package, device="cpu", show=seen.append)
    assert report.faults == []
    assert report.exit_code == 0
    assert seen == report.findings
    assert findings(report, "hashes")[0].status == "ok"
    assert "bpe, 3,000 pieces, normalizer identity" in findings(report, "tokenizer.model")[0].meaning
    assert "all of" in findings(report, "tokenizer.json")[0].meaning
    assert findings(report, "prediction")[0].status == "ok"
    losses = findings(report, "loss by language")[0].meaning
    assert all(f" {language} " in losses for language in ("zh", "en", "ar", "ko"))
    assert "北京是中国的首都。" in findings(report, "published example")[0].meaning
    assert findings(report, "published example")[0].status == "ok"


@pytest.mark.usefixtures("short_corpus")
def test_snapshot_of_2023_has_the_known_faults_and_packaging_repairs_them(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "nlp_polylm_13b_text_generation", "bin-sharded")
    report = verify_snapshot(source, name="13b", device="cpu")
    faulty = {finding.check for finding in report.faults}
    assert faulty >= {"weight format", "config.json", "generation_config.json", "chat template"}
    assert faulty >= {"tokenizer.json", "tokenizer_config.json"}
    assert "511, but </s> is 2" in findings(report, "config.json")[0].meaning
    assert findings(report, "extra tensors")[0].status == "note"
    assert report.exit_code == 1
    repairs = {finding.repair for finding in report.faults if finding.check != "prediction"}
    assert repairs == {"polylm package 13b 13b-package"}
    package_snapshot(source, tmp_path / "out")
    repaired = verify_snapshot(tmp_path / "out", run=False)
    assert repaired.faults == []


@pytest.mark.usefixtures("short_corpus")
def test_random_weights_predict_nothing(random_snapshot: Path) -> None:
    report = verify_snapshot(random_snapshot, device="cpu")
    assert findings(report, "prediction")[0].status == "fault"
    assert "trained" in findings(report, "prediction")[0].meaning
    assert findings(report, "published example")[0].status == "note"


@pytest.mark.usefixtures("short_corpus")
def test_changed_and_missing_files(copy: Path) -> None:
    (copy / "LICENSE").unlink()
    (copy / "README.md").write_text("changed")
    found = findings(verify_snapshot(copy, run=False), "hashes")
    assert [finding.status for finding in found] == ["fault", "fault"]
    assert "LICENSE" in found[0].meaning
    assert "README.md" in found[1].meaning
    assert "modelscope download" in str(found[0].repair)


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"", "is empty"),
        (b"\n\n", "line 1 is not"),
        (b"README.md\n", "line 1 is not a sha256 and a file name: 'README.md'"),
        (b"0" * 64 + b"  config.json\nconfig.json\n", "line 2 is not"),
        (b"0" * 64 + b"  \xe9t\xe9.txt\n", "Missing: "),
        (b"0" * 64 + b"  " + b"x" * 5000 + b"\n", "is not the name of a file"),
        (b"0" * 64 + b"  ../config.json\n", "is not the name of a file"),
        (b"0" * 64 + b"  /etc/hostname\n", "is not the name of a file"),
        (b"0" * 64 + b"  sub/config.json\n", "is not the name of a file"),
        (b"0" * 64 + b"  ..\n", "is not the name of a file"),
        (b"0" * 64 + b"  config.json\n", "Not as SHA256SUMS says: config.json."),
        (b"x" * (2 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_list_of_checksums_from_a_stranger(copy: Path, content: bytes, meaning: str) -> None:
    (copy / "SHA256SUMS").write_bytes(content)
    (finding,) = check_hashes(copy, "download")
    assert (finding.status, finding.repair) == ("fault", "download")
    assert meaning in finding.meaning
    with pytest.raises(SnapshotError, match="is not uploaded"):
        upload_package(copy, "somebody/polylm")


def test_pipe_instead_of_a_file(copy: Path) -> None:
    (copy / "LICENSE").unlink()
    os.mkfifo(copy / "LICENSE")
    (finding,) = check_hashes(copy, "download")
    assert "Missing: LICENSE" in finding.meaning
    (copy / "SHA256SUMS").unlink()
    os.mkfifo(copy / "SHA256SUMS")
    (finding,) = check_hashes(copy, "download")
    assert "not a regular file" in finding.meaning


@pytest.mark.usefixtures("short_corpus")
def test_release_and_what_told_it(package: Path, tmp_path: Path) -> None:
    def release(folder: Path, name: str | None = None) -> Finding:
        return findings(verify_snapshot(folder, name, run=False), "release")[0]

    assert "configuration.json names the prompt format 'assistant'" in release(package).meaning
    assert release(package, "tiny").meaning == "tiny, recognised by the name that was given."
    named = build_snapshot(tmp_path / "nlp_polylm_assistant_13b_text_generation")
    assert release(named, "13b").meaning == "assistant-13b, recognised by the folder's name."
    renamed = named.rename(tmp_path / "my-model")
    assert release(renamed).status == "note"
    assert "unknown: pass --release with one of" in release(renamed).meaning
    assert str(release(renamed).repair).endswith("my-model-package --release NAME")
    change(renamed / "configuration.json", prompt_format="multialpaca")
    assert "configuration.json names the prompt format 'multialpaca'" in release(renamed).meaning
    change(renamed / "configuration.json", release="13b")
    assert release(renamed).meaning == "13b, recognised by configuration.json."


@pytest.mark.usefixtures("short_corpus")
def test_damaged_record_is_named(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin-sharded")
    (finding,) = findings(verify_snapshot(source, run=False), "records")
    assert (finding.status, "3 .bin files" in finding.meaning) == ("ok", True)
    record = flip_byte(source / "pytorch_model-00002-of-00003.bin")
    (finding,) = findings(verify_snapshot(source, run=False), "records")
    assert finding.status == "fault"
    assert f"pytorch_model-00002-of-00003.bin is damaged, download it again: its record {record} " in finding.meaning


def test_compressed_records_are_named(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin")
    compress(source / "pytorch_model.bin")
    (finding,) = verify_snapshot(source).faults
    assert "pytorch_model.bin is compressed" in finding.meaning


@pytest.mark.usefixtures("short_corpus")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_tensor_that_is_not_finite_is_named(dtype: torch.dtype, tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "bin-sharded", dtype=dtype)
    assert findings(verify_snapshot(source, run=False), "numbers")[0].status == "ok"
    spoiled = {"wte.weight": "nan", "h.1.attn.c_proj.weight": "inf", "ln_f.bias": "-inf"}
    for file in source.glob("*.bin"):
        stored = torch.load(file, weights_only=True)
        for name, value in spoiled.items():
            if (tensor := stored.get(f"transformer.{name}")) is not None:
                tensor.view(-1)[tensor.numel() // 2] = float(value)
        torch.save(stored, file)
    (finding,) = findings(verify_snapshot(source, run=False), "numbers")
    assert finding.status == "fault"
    assert finding.meaning.startswith("NaN or infinity in wte.weight, h.1.attn.c_proj.weight, ln_f.bias: ")


@pytest.mark.usefixtures("short_corpus")
@pytest.mark.parametrize(
    ("file", "values", "check", "meaning"),
    [
        ("config.json", {"eos_token_id": 2999}, "config.json", "never end"),
        ("generation_config.json", {"eos_token_id": 5}, "generation_config.json", "own defaults"),
        ("tokenizer_config.json", {"chat_template": None}, "chat template", "refuse messages"),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}, "tokenizer_config.json", "read wrongly"),
    ],
)
def test_settings_that_are_wrong(copy: Path, file: str, values: dict[str, Any], check: str, meaning: str) -> None:
    change(copy / file, **values)
    found = [finding for finding in verify_snapshot(copy, run=False).faults if finding.check == check]
    assert len(found) == 1
    assert meaning in found[0].meaning
    assert "polylm package" in str(found[0].repair)


@pytest.mark.usefixtures("short_corpus")
def test_tokenizer_json_that_disagrees(copy: Path) -> None:
    spoiled = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    spoiled["normalizer"] = {"type": "Prepend", "prepend": "x"}
    (copy / "tokenizer.json").write_text(json.dumps(spoiled))
    (finding,) = findings(verify_snapshot(copy, run=False), "tokenizer.json")
    assert finding.status == "fault"
    assert "SentencePiece gives" in finding.meaning


def test_tokenizer_json_that_is_broken(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    (finding,) = findings(verify_snapshot(copy, run=False), "tokenizer.json")
    assert (finding.status, "cannot be loaded" in finding.meaning) == ("fault", True)


@pytest.mark.usefixtures("short_corpus")
def test_weights_that_are_not_finite(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = next(copy.glob("model-00001-*"))
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    report = verify_snapshot(copy, device="cpu")
    assert {finding.check for finding in report.faults} == {"hashes", "numbers", "network"}
    assert name.removeprefix("transformer.") in findings(report, "numbers")[0].meaning
    assert name.removeprefix("transformer.") in findings(report, "network")[0].meaning


def test_folder_that_is_no_snapshot(tmp_path: Path) -> None:
    report = verify_snapshot(tmp_path)
    assert report.exit_code == 1
    assert "config.json" in report.findings[0].meaning


def test_wrong_generation_config_is_not_repaired_by_a_download(copy: Path) -> None:
    change(copy / "generation_config.json", temperature=0.0)
    (finding,) = verify_snapshot(copy).findings
    assert finding.meaning.startswith("generation_config.json: temperature=0.0 must be")
    assert finding.repair is None


def test_every_problem_of_a_broken_snapshot_is_a_finding(tmp_path: Path) -> None:
    source = build_snapshot(tmp_path / "source", "safetensors-sharded")
    (source / "tokenizer.model").unlink()
    (source / "model-00002-of-00003.safetensors").unlink()
    report = verify_snapshot(source)
    assert all(finding.status == "fault" for finding in report.findings)
    assert {name for name in ("tokenizer.model", "model-00002") if name in str(report)} == {
        "tokenizer.model",
        "model-00002",
    }


def test_table_is_aligned_and_wrapped() -> None:
    report = VerifyReport(
        Path("x"), [Finding("a", "ok", "fine."), Finding("long name", "fault", "word " * 40, "polylm package x y")]
    )
    lines = render_report(report, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[1] == "ok     a          fine."
    assert lines[2].startswith("fault  long name  word word")
    assert "1 fault" in lines
    assert lines[-1] == "    polylm package x y"
