"""The native backend: this package's own engine on one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modelscope_polylm.backends.base import Backend, DeltaStream, Request
from modelscope_polylm.backends.placement import check_memory, check_precision
from modelscope_polylm.backends.plausibility import check_plausibility
from modelscope_polylm.generation.engine import Engine, check_native
from modelscope_polylm.generation.loop import MAX_ROWS
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Deliver
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.snapshot import Snapshot


class NativeBackend(Backend):
    """Loads a snapshot's weights onto one device and generates with them.

    Args:
        snapshot: an opened snapshot.
        device: a CPU or a CUDA device that exists.
        dtype: of weights and KV cache; the residual stream, softmax and logits are fp32 in any case.
        max_rows: rows that run together at most; beams and samples count as rows.
        reuse_prefixes: keep what was computed for a text, so that texts with the same begin need not compute it again.

    Raises:
        DeviceError: the GPU does not compute in bfloat16, or the weights do not fit into the device's memory.
    """

    name = "native"

    def __init__(
        self,
        snapshot: Snapshot,
        device: torch.device,
        dtype: torch.dtype,
        max_rows: int = MAX_ROWS,
        reuse_prefixes: bool = True,
    ):
        check_precision(dtype, device)
        check_memory(snapshot.config, dtype, device)
        self.config, self.device, self.dtype = snapshot.config, device, dtype
        weights = snapshot.weight_files.load(snapshot.config, device, dtype)
        if snapshot.adapter is not None:
            snapshot.adapter.merge_(weights)
        decoder = Decoder(snapshot.config, weights)
        check_plausibility(snapshot, decoder)
        self.engine = Engine(decoder, snapshot.tokenizer, max_rows, reuse_prefixes)

    def check_options(self, options: GenerationOptions) -> None:
        """Stop strings together with beams are not here."""
        check_native(options)

    def submit(
        self,
        requests: Sequence[Request],
        partial: bool = True,
        at_once: int | None = None,
        listener: Deliver | None = None,
    ) -> DeltaStream:
        """Let requests join the engine's batch."""
        return self.engine.submit(requests, partial, at_once, listener)
