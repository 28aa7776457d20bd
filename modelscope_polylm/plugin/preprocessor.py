"""PolyLM's preprocessor for ModelScope: a text or messages -> a prompt and its token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscope.preprocessors.base import Preprocessor
from modelscope.preprocessors.builder import PREPROCESSORS
from modelscope.utils.constant import ModeKeys

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.inputs import InputReader
from modelscope_polylm.plugin.registration import PREPROCESSOR_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PolyLMPreprocessor"]


@PREPROCESSORS.register_module("nlp", PREPROCESSOR_TYPE, force=True)
class PolyLMPreprocessor(Preprocessor):  # type: ignore[misc]
    """Makes prompts and their token ids; decodes token ids.

    Attributes:
        reader: reads inputs for a snapshot.
    """

    def __init__(
        self,
        model_dir: str | None = None,
        mode: str = ModeKeys.INFERENCE,
        *,
        reader: InputReader | None = None,
        prompt_format: str | None = None,
        release: str | None = None,
        **_: Any,
    ) -> None:
        """Prepare for a snapshot folder, or with the reader of one that is open already.

        Raises:
            SnapshotError: the folder is not a complete snapshot.
            OptionError: neither a folder nor a reader, or an unknown release or format.
        """
        super().__init__(mode)
        if reader is None and model_dir is None:
            raise OptionError("PolyLMPreprocessor needs a model_dir.")
        self.reader = reader or _open_reader(str(model_dir), prompt_format, release)

    def __call__(self, data: Any, **options: Any) -> dict[str, Any]:
        """Read one input.

        Args:
            data: a text, `{'text': ...}`, `{'messages': [...]}` or a list of messages.
            options: generation options, which say how much room the answer needs; `allow_role_markers`,
                `system_message`.

        Returns:
            'prompt': str; 'input_ids' and 'attention_mask': int64 [1, length].

        Raises:
            InputError: not one of these, empty, or longer than the context.
        """
        import torch

        markers = bool(options.pop("allow_role_markers", False))
        system_message = options.pop("system_message", "refuse")
        prompt = self.reader.read(
            data,
            GenerationOptions.from_layers(options),
            allow_role_markers=markers,
            system_message=system_message,
        )
        ids = torch.tensor([prompt.ids])
        return {"prompt": prompt.text, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = True, **_: Any) -> str:
        """The text of token ids."""
        return self.reader.tokenizer.decode(tokens, skip_special_tokens)


def _open_reader(folder: str, prompt_format: str | None, release: str | None) -> InputReader:
    from modelscope_polylm.snapshot import open_snapshot

    snapshot = open_snapshot(folder, prompt_format=prompt_format, release=release, check_weights=False)
    return InputReader(snapshot.tokenizer, snapshot.prompt_format, snapshot.config.max_positions)
