"""Output layer: logits over the vocabulary, or at once the best tokens and the log-sum-exp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig, choose_output
from modelscope_polylm.network.kernels.dispatch import MAX_ROWS, uses_triton

MAX_TOP = 16
Config = VectorConfig | MatrixConfig


def output_logits_reference(hidden: Tensor, embedding: Tensor, vocab_limit: int) -> Tensor:
    """Plain torch twin of `output_logits`: rounds the logits to the weights' dtype first."""
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32
    logits = F.linear(hidden, embedding).float()
    logits[:, vocab_limit:] = float("-inf")
    return logits


def output_candidates_reference(
    hidden: Tensor, embedding: Tensor, k: int, vocab_limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch twin of `output_candidates`: exactly k candidates a row."""
    # hidden: [R, D], embedding: [V, D] -> values, ids: [R, k], log-sum-exp: [R]
    logits = output_logits_reference(hidden, embedding, vocab_limit)
    values, ids = logits.topk(k, dim=-1)
    return values, ids.int(), logits.logsumexp(-1)


def top_candidates_reference(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Plain torch twin of `top_candidates`."""
    # values, ids: [R, C] -> [R, k]
    by_id = ids.argsort(dim=-1, stable=True)
    order = by_id.gather(1, values.gather(1, by_id).argsort(dim=-1, descending=True, stable=True)[:, :k])
    return values.gather(1, order), ids.gather(1, order)


def _choose(hidden: Tensor, embedding: Tensor, top: int, config: Config | None) -> Config | None:
    # hidden: [R, D], embedding: [V, D]; None: the torch twin runs
    rows, inputs = hidden.shape
    if not uses_triton(hidden, embedding) or not 1 <= rows <= MAX_ROWS or inputs % 16 or top > MAX_TOP:
        return None
    return config or choose_output(rows, top, embedding.dtype)


def output_logits(hidden: Tensor, embedding: Tensor, vocab_limit: int, config: Config | None = None) -> Tensor:
    """Logits of every token: [R, V] fp32, -inf for ids from `vocab_limit` on.

    hidden [R, D] is the output of the final LayerNorm, embedding [V, D] the tied token embedding, both of one dtype.
    """
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32
    chosen = _choose(hidden, embedding, 1, config)
    if chosen is None:
        return output_logits_reference(hidden, embedding, vocab_limit)
    from modelscope_polylm.network.kernels.output_triton import launch_logits

    with torch.cuda.device_of(hidden):
        return launch_logits(hidden, embedding, vocab_limit, chosen)


def output_candidates(
    hidden: Tensor, embedding: Tensor, k: int, vocab_limit: int, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates among which every row's k best tokens are, and the log-sum-exp over all tokens.

    Returns values [R, C] fp32 (logits), ids [R, C] int32 below `vocab_limit` (a place without a token has -inf and id
    0), and [R] fp32. `top_candidates` picks the k best. The kernel (1 <= k <= 16, 1 to 64 rows, CUDA) never writes the
    logits.
    """
    # hidden: [R, D], embedding: [V, D] -> values, ids: [R, C], log-sum-exp: [R]
    chosen = _choose(hidden, embedding, k, config)
    if chosen is None or k > chosen.block_n:
        return output_candidates_reference(hidden, embedding, k, vocab_limit)
    from modelscope_polylm.network.kernels.output_triton import launch_candidates

    with torch.cuda.device_of(hidden):
        return launch_candidates(hidden, embedding, k, vocab_limit, chosen)


def top_candidates(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values of each row, best first, and their ids; of equal values the lower id comes first.

    values [R, C] fp32, ids [R, C] int32 -> [R, k] each.
    """
    # values, ids: [R, C] -> [R, k]
    if not uses_triton(values, ids) or k > MAX_TOP:
        return top_candidates_reference(values, ids, k)
    from modelscope_polylm.network.kernels.output_triton import launch_best

    with torch.cuda.device_of(values):
        return launch_best(values, ids, k)
