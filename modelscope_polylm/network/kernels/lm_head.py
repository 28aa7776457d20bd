"""Output layer: logits over the vocabulary, or at once the best tokens and the log-sum-exp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig, choose_output
from modelscope_polylm.network.kernels.dispatch import MAX_ROWS, uses_triton

MAX_TOP = 16
Config = VectorConfig | MatrixConfig


def lm_head_logits_reference(hidden: Tensor, embedding: Tensor, vocab_limit: int) -> Tensor:
    """Plain torch twin of `lm_head_logits`: rounds the logits to the weights' dtype first."""
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32
    logits = F.linear(hidden, embedding).float()
    logits[:, vocab_limit:] = float("-inf")
    return logits


def lm_head_topk_reference(
    hidden: Tensor, embedding: Tensor, k: int, vocab_limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch twin of `lm_head_topk`."""
    # hidden: [R, D], embedding: [V, D] -> values, ids: [R, k], log-sum-exp: [R]
    logits = lm_head_logits_reference(hidden, embedding, vocab_limit)
    values, ids = logits.topk(k, dim=-1)
    higher, lower_id = values[:, None] > values[:, :, None], ids[:, None] < ids[:, :, None]
    # each token's place is the number of tokens before it; a sort could not be captured on a GPU
    place = (higher | ((values[:, None] == values[:, :, None]) & lower_id)).sum(-1)
    return values.scatter(1, place, values), ids.scatter(1, place, ids).int(), logits.logsumexp(-1)


def _choose(hidden: Tensor, embedding: Tensor, top: int, config: Config | None) -> Config | None:
    # hidden: [R, D], embedding: [V, D]; None: the torch twin runs
    rows, inputs = hidden.shape
    if not uses_triton(hidden, embedding) or not 1 <= rows <= MAX_ROWS or inputs % 16 or top > MAX_TOP:
        return None
    return config or choose_output(rows, top, embedding.dtype, embedding.device)


def lm_head_logits(hidden: Tensor, embedding: Tensor, vocab_limit: int, config: Config | None = None) -> Tensor:
    """Logits of every token: [R, V] fp32, -inf for ids from `vocab_limit` on.

    hidden [R, D] is the output of the final LayerNorm, embedding [V, D] the tied token embedding, both of one dtype.
    """
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32
    chosen = _choose(hidden, embedding, 1, config)
    if chosen is None:
        return lm_head_logits_reference(hidden, embedding, vocab_limit)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_logits

    with torch.cuda.device_of(hidden):
        return launch_logits(hidden, embedding, vocab_limit, chosen)


def lm_head_topk(
    hidden: Tensor, embedding: Tensor, k: int, vocab_limit: int, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's k best tokens, best first, and the log-sum-exp over all tokens below `vocab_limit`.

    Returns values [R, k] fp32 (logits), ids [R, k] int32 (of equal logits the lower id comes first) and [R] fp32. The
    kernels (1 <= k <= 16, 1 to 64 rows, CUDA) never write the logits; where fewer than k tokens exist, they fill up
    with -inf and id 0.
    """
    # hidden: [R, D], embedding: [V, D] -> values, ids: [R, k], log-sum-exp: [R]
    chosen = _choose(hidden, embedding, k, config)
    if chosen is None or k > chosen.block_n:
        return lm_head_topk_reference(hidden, embedding, k, vocab_limit)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_best

    with torch.cuda.device_of(hidden):
        return launch_best(hidden, embedding, k, vocab_limit, chosen)
