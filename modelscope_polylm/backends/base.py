"""The interface that every backend has: token ids and options in, token ids out as they come."""

from __future__ import annotations

import abc
from collections.abc import Generator, Sequence

import torch

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Answer, Update
from modelscope_polylm.network.config import PolyLMConfig

__all__ = ["Answer", "Backend", "Update"]


class Backend(abc.ABC):
    """Runs one snapshot. Safe to call from several threads: every call gets what it would get alone."""

    name: str
    default_batch_size: int | None = 1
    """Prompts of a list that run together where the caller does not say; None: all of them."""
    config: PolyLMConfig
    device: torch.device
    dtype: torch.dtype

    @abc.abstractmethod
    def stream(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> Generator[Update, None, list[list[Answer]]]:
        """Generate for all prompts together.

        Args:
            prompts: token ids, one list for each prompt, of any lengths from 1 on.
            options: checked options.

        Yields:
            For each prompt the token ids that are new and final; the native backend yields after every step, with
            empty lists where there are none. Beam search knows its answer at the end only and yields the best answer
            once. Closing the stream ends the work.

        Returns:
            For each prompt its answers, best first, `options.num_return_sequences` of them.

        Raises:
            InputError: a prompt that is empty or leaves no room in the context.
            OptionError: an option that this backend does not have.
            DeviceError: the batch does not fit into the device's memory.
        """

    def generate(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[list[Answer]]:
        """What `stream` returns, without the updates in between."""
        updates = self.stream(prompts, options)
        while True:
            try:
                next(updates)
            except StopIteration as finished:
                answers: list[list[Answer]] = finished.value
                return answers
