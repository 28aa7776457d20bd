"""Low-rank adapters in peft's folders: read as data, checked against a network, and added to its weights.

Format: peft's `LoraConfig` and the tensors of `PeftModel.save_pretrained`; an adapted projection is
W + scale * B A, with the scale alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelscope_polylm.errors import OptionError, SnapshotError, shortened, shown
from modelscope_polylm.files import read_json
from modelscope_polylm.network.checkpoint import CheckpointFile
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.weights import WeightFiles, declared_shapes

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE_FILE = "polylm_base.json"
"""What `polylm finetune` notes of an adapter's base, next to peft's files."""
TENSOR_NAME = re.compile(
    r"base_model\.model\.transformer\."
    r"(?P<module>h\.\d+\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj))\.lora_(?P<matrix>[AB])\.weight"
)
NORM = re.compile(r"(h\.\d+\.ln_[12]|ln_f)\.(weight|bias)")
# Settings of peft's LoraConfig that change the sum unless they are empty, False or 'none'.
UNSUPPORTED = (
    *("bias", "lora_bias", "use_dora", "use_qalora", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("trainable_token_indices", "layer_replication"),
)
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of an adapter that also change the base, so that it does not fit the published weights."""


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter that fits a network.

    Attributes:
        folder: peft's folder.
        base: what it says it was trained on.
        rank: of all its pairs.
        scale: of the products.
        pairs: by the name of the projection's weight, A [rank, in] and B [out, rank], fp32 on the CPU.
    """

    folder: Path
    base: str
    rank: int
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def read(cls, folder: str | Path, config: PolyLMConfig) -> Adapter:
        """Read peft's folder.

        Args:
            folder: with adapter_config.json and adapter_model.safetensors (or .bin, read as data).
            config: sizes of the network that it is for.

        Raises:
            SnapshotError: files that are missing or damaged.
            OptionError: an adapter of another kind, or for another network; names what does not fit.
        """
        folder = Path(folder).expanduser()
        settings = read_adapter_config(folder)
        rank = _rank(settings, folder)
        file = next((CheckpointFile(folder / name) for name in ADAPTER_WEIGHTS if (folder / name).exists()), None)
        if file is None:
            raise SnapshotError(f"{folder} has no {ADAPTER_WEIGHTS[0]}: it is no complete adapter.")
        shapes = {name: header.shape for name, header in file.headers.items()}
        if problems := _problems(shapes, rank, config):
            base = str(settings.get("base_model_name_or_path"))
            what = f"The adapter in {folder}, trained on {shown(base)}, does not fit this model"
            raise OptionError("; ".join([what, *shortened(problems)]) + ".")
        tensors = {name: tensor.float() for name, tensor in file.tensors(shapes)}
        if infinite := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise SnapshotError(f"{file.path} holds numbers that are not finite, in {shown(infinite[0])}.")
        divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
        base = settings.get("base_model_name_or_path") or ""
        return cls(folder, str(base), rank, float(settings.get("lora_alpha", 8)) / divisor, _paired(tensors))

    def merged(self, name: str, weight: Tensor, transposed: bool = False) -> Tensor:
        """A tensor of the network with the adapter added to it: fp32, or the tensor itself if it is not adapted.

        Args:
            name: canonical name of the tensor.
            weight: a projection is [out, in].
            transposed: a projection is [in, out], as GPT-2's Conv1D holds it.
        """
        # weight: any shape -> the same shape
        if name not in self.pairs:
            return weight
        down, up = (matrix.to(weight.device) for matrix in self.pairs[name])
        change = up @ down * self.scale
        return weight.float() + (change.t() if transposed else change)

    def merge_(self, weights: Mapping[str, Tensor], transposed: bool = False) -> None:
        """Add the adapter to weights where they are; each is rounded to its own dtype once. Arguments as `merged`."""
        for name in self.pairs:
            weights[name].copy_(self.merged(name, weights[name], transposed))

    def digest(self) -> str:
        """A sha256 of what it adds."""
        digest = hashlib.sha256(str(self.scale).encode())
        for name in sorted(self.pairs):
            digest.update(name.encode())
            for matrix in self.pairs[name]:
                digest.update(matrix.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The settings of peft's folder. Raises SnapshotError where there are none, OptionError for no plain LoRA."""
    if not folder.is_dir():
        raise SnapshotError(f"{folder} is no folder: adapter= takes the folder that peft or `polylm finetune` wrote.")
    settings = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(settings, dict):
        raise SnapshotError(f"{folder / ADAPTER_CONFIG} holds no settings.")
    if settings.get("peft_type") != "LORA":
        raise OptionError(f"The adapter in {folder} is {settings.get('peft_type')!r:.40}: only LORA can be merged.")
    for name in UNSUPPORTED:
        value = settings.get(name)
        if value and value != "none":
            raise OptionError(f"The adapter in {folder} has {name}={value!r:.60}, which cannot be merged here.")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        raise OptionError(
            f"The adapter in {folder} began as {start[:40]!r}, which changed its base, too: convert it with peft first."
        )
    return settings


def _rank(settings: Mapping[str, Any], folder: Path) -> int:
    rank, alpha = settings.get("r"), settings.get("lora_alpha", 8)
    is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 or not is_number:
        raise SnapshotError(f"{folder / ADAPTER_CONFIG} has r={rank!r:.40} and lora_alpha={alpha!r:.40}.")
    return rank


def _problems(shapes: Mapping[str, tuple[int, ...]], rank: int, config: PolyLMConfig) -> list[str]:
    """A line for each tensor that does not fit this network."""
    declared, problems = declared_shapes(config), []
    for name, shape in shapes.items():
        found = TENSOR_NAME.fullmatch(name)
        weight = f"{found['module']}.weight" if found else ""
        if found is None:
            problems.append(f"{shown(name)} adapts something other than c_attn, c_proj and c_fc")
        elif weight not in declared:
            problems.append(f"{name}: the model has {config.layers} layers")
        else:
            outputs, inputs = declared[weight]
            wanted = (rank, inputs) if found["matrix"] == "A" else (outputs, rank)
            if shape != wanted:
                problems.append(f"{name} is {list(shape)}, where rank {rank} and this model need {list(wanted)}")
            if _partner(name) not in shapes:
                problems.append(f"{_partner(name)} is missing")
    return problems or ([] if shapes else ["it holds no tensors"])


def _partner(name: str) -> str:
    return name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")


def _paired(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    pairs = {}
    for name, tensor in tensors.items():
        found = TENSOR_NAME.fullmatch(name)
        if found and found["matrix"] == "A":
            pairs[f"{found['module']}.weight"] = (tensor, tensors[_partner(name)])
    return pairs


def base_fingerprint(weight_files: WeightFiles) -> str:
    """A sha256 of the weights of all LayerNorms, rounded to bf16: the same for every layout of the same model."""
    names = {name for name, _ in weight_files.headers() if NORM.fullmatch(name)}
    norms = {name: source.tensor for name, source in weight_files.tensors(names)}
    digest = hashlib.sha256()
    for name in sorted(norms):
        digest.update(name.encode() + norms[name].to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_base(adapter: Adapter, weight_files: WeightFiles) -> None:
    """Raise OptionError for an adapter that `polylm finetune` has trained on another model."""
    if not (adapter.folder / BASE_FILE).exists():
        return
    noted = read_json(adapter.folder / BASE_FILE)
    fingerprint = noted.get("fingerprint") if isinstance(noted, dict) else None
    if fingerprint != base_fingerprint(weight_files):
        raise OptionError(
            f"The adapter in {adapter.folder} was trained on {shown(adapter.base)}, and {weight_files.folder} is "
            "another model of the same sizes: load the model that it was trained on."
        )
