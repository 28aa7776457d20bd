"""The native backend: this package's own engine on one device."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from modelscope_polylm.backends.base import Answer, Backend, Update
from modelscope_polylm.backends.placement import check_memory, check_precision
from modelscope_polylm.backends.plausibility import check_plausibility
from modelscope_polylm.generation.engine import Engine, check_native
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.snapshot import Snapshot


class NativeBackend(Backend):
    """Loads a snapshot's weights onto one device and generates with them.

    Args:
        snapshot: an opened snapshot.
        device: a CPU or a CUDA device that exists.
        dtype: of weights and KV cache; the residual stream, softmax and logits are fp32 in any case.

    Raises:
        DeviceError: the GPU does not compute in bfloat16, or the weights do not fit into the device's memory.
    """

    name = "native"

    def __init__(self, snapshot: Snapshot, device: torch.device, dtype: torch.dtype):
        check_precision(dtype, device)
        check_memory(snapshot.config, dtype, device)
        self.config, self.device, self.dtype = snapshot.config, device, dtype
        weights = snapshot.weight_files.load(snapshot.config, device, dtype)
        decoder = Decoder(snapshot.config, weights)
        check_plausibility(snapshot, decoder)
        self.engine = Engine(decoder, snapshot.tokenizer)

    def stream(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> Generator[Update, None, list[list[Answer]]]:
        """See `Backend.stream`."""
        check_native(options)
        return self.engine.stream(prompts, options)
