"""The interface that every backend has: requests in, deltas of token ids out as they come."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Completion, Deliver, Delta, DeltaStream
from modelscope_polylm.generation.requests import Request, checked_requests
from modelscope_polylm.network.config import PolyLMConfig

__all__ = ["Backend", "Completion", "Delta", "DeltaStream", "Request"]


class Backend(abc.ABC):
    """Runs one snapshot. Safe to call from several threads: every request gets what it would get alone."""

    name: str
    joins_requests: bool = True
    """Whether requests that are submitted later join those that run; otherwise only those submitted together do."""
    window: int = 512
    """Requests to keep in flight where there are more than can run at once."""
    config: PolyLMConfig
    device: torch.device
    dtype: torch.dtype

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied or pickled. Raises TypeError."""
        raise TypeError(
            "A loaded model cannot be copied or pickled: threads may share it, and another process loads its own."
        )

    def requests(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions | Sequence[GenerationOptions]
    ) -> list[Request]:
        """Prompts as checked requests.

        Args:
            prompts: token ids, one list for each prompt, of any lengths from 1 on.
            options: checked options, for all prompts or one for each.

        Raises:
            InputError: a prompt that is empty or leaves no room in the context.
            OptionError: an option that this backend does not have.
        """
        for each in [options] if isinstance(options, GenerationOptions) else options:
            self.check_options(each)
        return checked_requests(prompts, options, self.config)

    def scoring_requests(self, texts: Sequence[Sequence[int]], starts: Sequence[int], best: int = 0) -> list[Request]:
        """Texts whose own tokens are to be scored, as requests; each ends with a completion that has only `scores`.

        Args:
            texts: token ids.
            starts: of each text the position, at least 1, from which on its tokens are scored; at most its length.
            best: how many of the most probable tokens are told for each position.

        Raises:
            InputError: a text that is too long or has an unknown id, or a start with nothing before it.
            OptionError: this backend does not score texts.
        """
        raise OptionError(f"backend={self.name!r} does not score texts: load the model with backend='native'.")

    @abc.abstractmethod
    def check_options(self, options: GenerationOptions) -> None:
        """Raises OptionError for what this backend does not have."""

    @abc.abstractmethod
    def submit(
        self,
        requests: Sequence[Request],
        partial: bool = True,
        at_once: int | None = None,
        listener: Deliver | None = None,
    ) -> DeltaStream:
        """Begin requests, which may differ in all their options.

        Args:
            requests: made by `requests`.
            partial: whether deltas are wanted before the end of a request.
            at_once: most of them that run together; None leaves it to the backend.
            listener: gets the deltas in a thread of the backend; None leaves them to the stream's reader.

        Returns:
            The deltas, in which each request ends with its completions; closing or dropping the stream cancels what has
            not ended.

        Raises:
            DeviceError: a request does not fit into the device's memory.
        """

    def generate(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions | Sequence[GenerationOptions]
    ) -> list[list[Completion]]:
        """For each prompt its answers, best first, `num_return_sequences` of them."""
        return self.submit(self.requests(prompts, options), partial=False).completions()
