"""PolyLM as ModelScope models: what `Model.from_pretrained` and `pipeline(model=...)` construct."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope.models.base import TorchModel
from modelscope.models.builder import MODELS

from modelscope_polylm.errors import InputError, OptionError, SnapshotError
from modelscope_polylm.files import read_json
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.plugin.registration import MODEL_TYPE

if TYPE_CHECKING:
    import torch

    from modelscope_polylm.backends.base import Completion

__all__ = ["PolyLMForChat", "PolyLMForTextGeneration", "PolyLMForTranslation"]

logger = logging.getLogger(__name__)

# ModelScope hands these to every model constructor; they say nothing that this model could follow.
FROM_MODELSCOPE = ("trust_remote_code", "model_prefetched", "invoked_by", "third_party", "type", "model_type")


@MODELS.register_module("text-generation", MODEL_TYPE, force=True)
class PolyLMForTextGeneration(TorchModel):  # type: ignore[misc]
    """A PolyLM snapshot, loaded.

    The weights belong to the backend, which keeps them where they were loaded: `to` does not move them.

    Attributes:
        generator: the snapshot on its backend.
        device, dtype: where and in which precision the weights are.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> None:
        """Load a snapshot folder.

        Args:
            model_dir: the folder.
            device: 'gpu', 'cuda', 'cuda:1', 'gpu:0' or 'cpu'; None takes a GPU if there is one.
            dtype, torch_dtype: two names of one thing, the precision; None is bfloat16 on CUDA and float32 on the CPU.
            options: `backend`, `prompt_format`, `release`, `adapter` and the backend's own, such as `quantization`, as
                in `TextGenerator.load`.

        Raises:
            SnapshotError: the folder is not a complete snapshot.
            DeviceError: the device does not exist.
            OptionError: an unknown option or value.
        """
        super().__init__(str(model_dir), trust_remote_code=bool(options.get("trust_remote_code", False)))
        if dtype is not None and torch_dtype is not None and str(dtype) != str(torch_dtype):
            raise OptionError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r} are two names of one thing: give one.")
        self.generator = TextGenerator.load(
            model_dir,
            device=device,
            dtype=torch_dtype if dtype is None else dtype,
            **_own_options(Path(model_dir), options),
        )
        self._device_name = str(self.device)

    @property
    def device(self) -> torch.device:
        return self.generator.backend.device

    @property
    def dtype(self) -> torch.dtype:
        return self.generator.backend.dtype

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """Continue token ids, as `transformers.GenerationMixin.generate` does.

        Args:
            input_ids: int64 [batch, length], padded on either side where `attention_mask` is 0.
            attention_mask: [batch, length], 1 where there is a token; None where nothing is padded.
            options: generation options over the snapshot's defaults.

        Returns:
            int64 [batch * num_return_sequences, length + new], on the device of `input_ids`: its columns, then the
            answers with their end token, padded on the right.

        Raises:
            InputError: not such a tensor, an empty row, or a row that leaves no room in the context.
            OptionError: an unknown option or value.
        """
        import torch

        checked = self.generator.options(options)
        prompts = _rows(input_ids, attention_mask)
        found = self.generator.backend.generate(prompts, checked)
        new = [torch.tensor(_with_end(each), dtype=torch.int64) for group in found for each in group]
        padding = checked.end_tokens[0] if checked.pad_token_id is None else checked.pad_token_id
        padded = torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=padding)
        repeated = input_ids.repeat_interleave(len(new) // len(prompts), dim=0)
        return torch.cat([repeated, padded.to(input_ids)], dim=1)

    def save_pretrained(self, target_folder: str | Path, **options: Any) -> None:
        """Write the folder that `polylm package` writes; every engine reads it.

        Args:
            target_folder: the folder to write.
            options: `dtype`, `release`, `max_shard_size`, `force`, `strict`; see `hub.package.package_snapshot`.

        Raises:
            OptionError: an unknown option, a folder in use, or a snapshot that does not tell its release.
            DownloadError: the disk is full or failing.
        """
        from modelscope_polylm.packaging.package import package_snapshot

        known = ("dtype", "release", "max_shard_size", "force", "strict")
        if unknown := [name for name in options if name not in known]:
            raise OptionError(f"save_pretrained has no option {unknown[0]!r}: it has {', '.join(known)}.")
        snapshot = self.generator.snapshot
        release = snapshot.release.name if snapshot.release else None
        adapter = snapshot.adapter.folder if snapshot.adapter else None
        package_snapshot(snapshot.folder, target_folder, adapter=adapter, **{"release": release, **options})

    def forward(self, input: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
        """Generate from `{'input_ids': ..., 'attention_mask': ...}`; returns `{'sequences': ...}`, see `generate`."""
        return {"sequences": self.generate(input["input_ids"], input.get("attention_mask"), **options)}

    def to(self, *args: Any, **kwargs: Any) -> PolyLMForTextGeneration:
        """Returns the model where it is: its backend placed the weights when it loaded them."""
        logger.debug("The weights stay on %s in %s; load the model anew to move it.", self.device, self.dtype)
        return self


@MODELS.register_module("chat", MODEL_TYPE, force=True)
class PolyLMForChat(PolyLMForTextGeneration):
    """The same model for the task chat: ModelScope notes the task in the class, so each task needs its own."""


@MODELS.register_module("translation", MODEL_TYPE, force=True)
class PolyLMForTranslation(PolyLMForTextGeneration):
    """The same model for the task translation."""


def _own_options(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options without what ModelScope adds: its own arguments, and the section 'model' of configuration.json."""
    foreign = {*FROM_MODELSCOPE, *_configured(folder)} - {"backend", "prompt_format", "release"}
    if options.get("device_map") is None:
        foreign.add("device_map")
    return {name: value for name, value in options.items() if name not in foreign}


def _configured(folder: Path) -> list[str]:
    try:
        section = read_json(folder / "configuration.json").get("model")
    except (SnapshotError, AttributeError):
        return []  # opening the snapshot tells what is wrong with it
    return list(section) if isinstance(section, dict) else []


def _rows(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[list[int]]:
    # input_ids, attention_mask: [batch, length]
    import torch

    if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
        raise InputError("input_ids must be an int64 tensor of shape [batch, length].")
    if attention_mask is None:
        return [list(row) for row in input_ids.tolist()]
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask has the shape {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}."
        )
    return [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]


def _with_end(completion: Completion) -> list[int]:
    return completion.ids if completion.end_token is None else [*completion.ids, completion.end_token]
