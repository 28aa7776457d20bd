"""What a run leaves: peft's folder of an adapter, or a tuned snapshot; there as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import DownloadError
from modelscope_polylm.network.adapter import BASE_FILE, base_fingerprint

if TYPE_CHECKING:
    from modelscope_polylm.snapshot import Snapshot

SHARD_SIZE = "5GB"
KEPT_FILES = ("config.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")
"""Of the base, which training does not change."""
CONFIGURATION = {
    "framework": "pytorch",
    "task": "text-generation",
    "model": {"type": "polylm"},
    "pipeline": {"type": "polylm-text-generation"},
    "preprocessor": {"type": "polylm-tokenizer"},
}
"""By what ModelScope finds the pipeline."""


def write_adapter(model: Any, state: Mapping[str, Any], base: Snapshot, out: Path) -> None:
    """Write peft's folder, with a note of the base.

    Args:
        model: a PeftModel.
        state: its tensors, gathered from all processes.
        base: the snapshot that it was trained on.
        out: the folder.

    Raises:
        DownloadError: the disk is full.
    """

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=state)
        (folder / "README.md").unlink(missing_ok=True)  # peft's is a form to fill in
        _write_json(folder / BASE_FILE, {"fingerprint": base_fingerprint(base.weight_files), **_names(base)})
        _write_json(folder / "configuration.json", {**CONFIGURATION, **_names(base)})

    _write_as_a_whole(out, write)


def write_snapshot(state: Mapping[str, Any], base: Snapshot, out: Path) -> None:
    """Write a snapshot with new weights, in the dtype of the old ones: float32, otherwise bfloat16.

    Args:
        state: tensors of a GPT2LMHeadModel, gathered from all processes.
        base: the snapshot that they began as.
        out: the folder.

    Raises:
        DownloadError: the disk is full.
    """
    import torch
    from huggingface_hub import save_torch_state_dict

    stored = dict(base.weight_files.headers())["wte.weight"].dtype
    dtype = torch.float32 if stored == "float32" else torch.bfloat16

    def write(folder: Path) -> None:
        tensors = {name: tensor.to(dtype) for name, tensor in state.items() if name != "lm_head.weight"}
        save_torch_state_dict(tensors, folder, max_shard_size=SHARD_SIZE)
        for name in KEPT_FILES:
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, folder / name)
        _write_json(folder / "configuration.json", {**CONFIGURATION, **_names(base)})

    _write_as_a_whole(out, write)


def _names(base: Snapshot) -> dict[str, str]:
    release = {"release": base.release.name} if base.release else {}
    return {**release, "prompt_format": base.prompt_format.name} if base.prompt_format else release


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_as_a_whole(out: Path, write: Callable[[Path], None]) -> None:
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        write(unfinished)
        os.replace(unfinished, out)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise DownloadError(
            f"{out} cannot be written ({error.strerror or error}): make room, and the same command goes on."
        ) from error
