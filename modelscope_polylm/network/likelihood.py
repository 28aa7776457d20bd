"""How well a network predicts given texts: the sign that its weights and its wiring belong together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.gpt2 import Decoder


def token_losses(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """Negative natural log-likelihood of each token but the first, given those before it.

    Args:
        decoder: the network.
        ids: at least two token ids, at most as many as the network has positions.

    Returns:
        [len(ids) - 1] fp32 on the decoder's device.
    """
    # ids: [length] -> [length - 1]
    tokens = torch.tensor([list(ids)], device=decoder.device)
    hidden = decoder.prefill(tokens)[0, :-1]
    return F.cross_entropy(F.linear(hidden, decoder.embedding).float(), tokens[0, 1:], reduction="none")
