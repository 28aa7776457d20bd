"""Adapters of peft: merged into every backend and into packages, and refused by name where they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelscope_polylm.errors import OptionError, PolyLMError, SnapshotError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.network.adapter import Adapter, base_fingerprint
from modelscope_polylm.packaging.cache import packaged_snapshot
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.snapshot import open_snapshot
from tests.commands import Outcome
from tests.snapshots import build_snapshot
from tests.training.adapters import save_adapter

CPU = torch.device("cpu")
IDS = [5, 9, 77, 301, 12]


@pytest.fixture(scope="module")
def adapter(random_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of `random_snapshot`. Do not write to it."""
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(random_snapshot, folder)
    return folder


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    """An adapter to write to."""
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def merged(snapshot: Path, adapter: Path | None) -> dict[str, torch.Tensor]:
    opened = open_snapshot(snapshot, release="assistant-13b", adapter=adapter)
    weights = opened.weight_files.load(opened.config, CPU, torch.float32)
    if opened.adapter is not None:
        opened.adapter.merge_(weights)
    return weights


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"targets": ("c_attn",), "r": 1},
        {"layers_to_transform": [1]},
    ],
)
def test_merged_as_peft_merges(random_snapshot: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    expected = save_adapter(random_snapshot, tmp_path, **settings).merge_and_unload().transformer.state_dict()
    weights, plain = merged(random_snapshot, tmp_path), merged(random_snapshot, None)
    changed = 0
    for name, weight in weights.items():
        is_projection = expected[name].dim() == 2 and name.startswith("h.")
        torch.testing.assert_close(weight, expected[name].t() if is_projection else expected[name], msg=name)
        changed += not torch.equal(weight, plain[name])
    assert changed == {1: 2, 4: 8}[settings.get("r", 4)] if "layers_to_transform" not in settings else changed == 4


def greedy(generator: TextGenerator) -> tuple[list[int], list[float]]:
    options = generator.options({"max_new_tokens": 6, "num_beams": 1, "output_logprobs": True})
    answer = generator.backend.generate([IDS], options)[0][0]
    return answer.ids, list(answer.logprobs or [])


@pytest.fixture(scope="module")
def package(random_snapshot: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`random_snapshot` with the adapter merged, packaged."""
    folder = tmp_path_factory.mktemp("package") / "package"
    report = package_snapshot(random_snapshot, folder, release="assistant-13b", adapter=adapter)
    assert any("adapter of rank 4" in warning for warning in report.warnings)
    return folder


def test_every_backend_runs_the_same_model(random_snapshot: Path, adapter: Path, package: Path) -> None:
    load: Callable[..., TextGenerator] = TextGenerator.load
    native = load(random_snapshot, device="cpu", release="assistant-13b", adapter=adapter)
    others = [
        load(random_snapshot, device="cpu", release="assistant-13b", adapter=adapter, backend="transformers"),
        load(package, device="cpu"),
    ]
    ids, logprobs = greedy(native)
    for other in others:
        found = greedy(other)
        assert found[0] == ids
        assert found[1] == pytest.approx(logprobs, rel=1e-4, abs=1e-4)
    plain = load(random_snapshot, device="cpu", release="assistant-13b")
    assert greedy(plain)[1] != pytest.approx(logprobs, rel=1e-2)


def test_a_package_holds_the_merged_weights(random_snapshot: Path, adapter: Path, package: Path) -> None:
    assert "adapter of rank 4" in (package / "README.md").read_text()
    stored = load_file(package / "model.safetensors")
    for name, weight in merged(random_snapshot, adapter).items():
        found = stored[f"transformer.{name}"]
        is_projection = found.dim() == 2 and name.startswith("h.")
        torch.testing.assert_close(found.t() if is_projection else found, weight, msg=name)
    assert not (package / "adapter_config.json").exists()


@pytest.mark.slow  # three packages
def test_packages_in_the_cache_are_made_for_each_adapter(random_snapshot: Path, adapter: Path, copied: Path) -> None:
    one = packaged_snapshot(random_snapshot, "assistant-13b", adapter=adapter)
    assert packaged_snapshot(random_snapshot, "assistant-13b", adapter=copied) == one
    change_tensors(copied, lambda name, tensor: tensor * 2)
    assert packaged_snapshot(random_snapshot, "assistant-13b", adapter=copied) != one
    assert packaged_snapshot(random_snapshot, "assistant-13b") != one


def test_the_other_layout_of_projections(tmp_path: Path, random_snapshot: Path, adapter: Path) -> None:
    sharded = build_snapshot(tmp_path, "bin-sharded")
    for name, weight in merged(sharded, adapter).items():
        torch.testing.assert_close(weight, merged(random_snapshot, adapter)[name])


def change_settings(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def change_tensors(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "is 'IA3': only LORA"),
        ({"peft_type": None}, "is None: only LORA"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"c_attn": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed its base"),
        ({"r": 8}, "where rank 8 and this model need"),
    ],
)
def test_adapters_that_cannot_be_merged(
    random_snapshot: Path, copied: Path, settings: dict[str, Any], message: str
) -> None:
    change_settings(copied, **settings)
    with pytest.raises(OptionError, match=message):
        open_snapshot(random_snapshot, adapter=copied)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"r": "4"}, "r='4'"), ({"r": 0}, "r=0"), ({"lora_alpha": None}, "lora_alpha=None"), ({"r": True}, "r=True")],
)
def test_settings_that_are_damaged(random_snapshot: Path, copied: Path, settings: dict[str, Any], message: str) -> None:
    change_settings(copied, **settings)
    with pytest.raises(SnapshotError, match=message):
        open_snapshot(random_snapshot, adapter=copied)


def test_an_adapter_of_a_smaller_model(tmp_path: Path, adapter: Path) -> None:
    other = build_snapshot(tmp_path, width=128, heads=1, layers=1)
    with pytest.raises(OptionError, match=r"does not fit this model; .* the model has 1 layers") as caught:
        open_snapshot(other, adapter=adapter)
    assert "is [4, 256], where rank 4 and this model need [4, 128]" in str(caught.value)


def test_tensors_that_do_not_belong(random_snapshot: Path, copied: Path) -> None:
    file = copied / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({**whole, "base_model.model.transformer.wte.lora_embedding_A": torch.zeros(4, 8)}, file)
    with pytest.raises(OptionError, match=r"wte\.lora_embedding_A adapts something other than c_attn"):
        open_snapshot(random_snapshot, adapter=copied)
    save_file(dict(list(whole.items())[1:]), file)
    with pytest.raises(OptionError, match="is missing"):
        open_snapshot(random_snapshot, adapter=copied)
    save_file({}, file)
    with pytest.raises(OptionError, match="holds no tensors"):
        open_snapshot(random_snapshot, adapter=copied)


def test_numbers_that_are_not_finite(random_snapshot: Path, copied: Path) -> None:
    change_tensors(copied, lambda name, tensor: tensor.fill_(float("nan")))
    with pytest.raises(SnapshotError, match="not finite"):
        open_snapshot(random_snapshot, adapter=copied)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_is_not_complete(random_snapshot: Path, copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(SnapshotError, match=missing.replace(".", r"\.")):
        open_snapshot(random_snapshot, adapter=copied)
    with pytest.raises(SnapshotError, match="is no folder"):
        open_snapshot(random_snapshot, adapter=copied / "none")


def test_pickled_adapters_are_read_as_data(random_snapshot: Path, adapter: Path, copied: Path) -> None:
    torch.save(load_file(copied / "adapter_model.safetensors"), copied / "adapter_model.bin")
    (copied / "adapter_model.safetensors").unlink()
    config = open_snapshot(random_snapshot).config
    assert Adapter.read(copied, config).digest() == Adapter.read(adapter, config).digest()


def test_an_adapter_of_another_model_of_the_same_sizes(tmp_path: Path, random_snapshot: Path, copied: Path) -> None:
    fingerprint = base_fingerprint(open_snapshot(random_snapshot).weight_files)
    (copied / "polylm_base.json").write_text(json.dumps({"fingerprint": fingerprint}))
    open_snapshot(random_snapshot, adapter=copied)
    other = build_snapshot(tmp_path / "other", seed=1)
    with pytest.raises(OptionError, match="is another model of the same sizes"):
        open_snapshot(other, adapter=copied)


@pytest.mark.parametrize("layout", ["safetensors", "bin-sharded"])
def test_the_fingerprint_is_of_the_model_and_not_of_its_files(tmp_path: Path, layout: str) -> None:
    one = build_snapshot(tmp_path / "one", dtype=torch.bfloat16)
    two = build_snapshot(tmp_path / "two", layout, torch.float32 if layout == "safetensors" else torch.bfloat16)
    assert base_fingerprint(open_snapshot(one).weight_files) == base_fingerprint(open_snapshot(two).weight_files)


def test_an_adapter_next_to_weights(random_snapshot: Path, adapter: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(random_snapshot, tmp_path / "both"))
    shutil.copy(adapter / "adapter_config.json", both)
    with pytest.raises(SnapshotError, match="nothing tells whether it is already merged"):
        open_snapshot(both)


def test_the_folder_of_an_adapter_in_place_of_a_model(random_snapshot: Path, copied: Path) -> None:
    opened = open_snapshot(copied, release="assistant-13b")
    assert opened.folder == random_snapshot and opened.adapter is not None and opened.adapter.rank == 4
    change_settings(copied, base_model_name_or_path="damo/some_model")
    with pytest.raises(SnapshotError, match="is an adapter of damo/some_model, not a model: load that with adapter="):
        open_snapshot(copied)


def test_an_adapter_tells_its_prompt_format(random_snapshot: Path, copied: Path) -> None:
    (copied / "configuration.json").write_text('{"prompt_format": "multialpaca"}')
    plain = open_snapshot(random_snapshot, release="13b")
    opened = open_snapshot(random_snapshot, release="13b", adapter=copied)
    assert plain.prompt_format and plain.prompt_format.name == "base"
    assert opened.prompt_format and opened.prompt_format.name == "multialpaca"


def test_commands_take_an_adapter(polylm: Callable[..., Outcome], random_snapshot: Path, adapter: Path) -> None:
    named = ["--model", str(random_snapshot), "--release", "assistant-13b", "--max-new-tokens", "8"]
    plain = polylm("generate", "Beijing", *named)
    tuned = polylm("generate", "Beijing", *named, "--adapter", str(adapter))
    assert plain.exit_code == tuned.exit_code == 0, tuned.errors
    assert plain.output != tuned.output
    assert polylm("generate", "Beijing", *named[2:], "--model", str(adapter)).output == tuned.output


@pytest.mark.slow  # writes a package
def test_the_command_that_packages_takes_an_adapter(
    polylm: Callable[..., Outcome], random_snapshot: Path, adapter: Path, package: Path, tmp_path: Path
) -> None:
    named = [str(random_snapshot), str(tmp_path / "package"), "--adapter", str(adapter), "--release", "assistant-13b"]
    made = polylm("package", *named)
    assert made.exit_code == 0, made.errors
    written = (tmp_path / "package" / "model.safetensors").read_bytes()
    assert written == (package / "model.safetensors").read_bytes()


def test_pipelines_take_an_adapter(random_snapshot: Path, adapter: Path) -> None:
    from modelscope.pipelines import pipeline

    import modelscope_polylm  # noqa: F401

    options: dict[str, Any] = {"device": "cpu", "release": "assistant-13b"}
    tuned = pipeline("text-generation", model=str(random_snapshot), adapter=str(adapter), **options)
    plain = pipeline("text-generation", model=str(random_snapshot), **options)
    call = {"max_new_tokens": 8}
    assert tuned("Beijing", **call) != plain("Beijing", **call)
    with pytest.raises(PolyLMError, match="is no folder"):
        pipeline("text-generation", model=str(random_snapshot), adapter="none", **options)
