"""LM head: logits over the vocabulary, or at once the best tokens and the log-sum-exp.

On CUDA with compute capability 9.0, in bf16, a row's result does not depend by a single bit on the number of rows or on
how many tokens are asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.kernels.configs import (
    MAX_FP32_LM_HEAD_ROWS,
    MatrixConfig,
    VectorConfig,
    choose_lm_head,
    prefers_library,
)
from modelscope_polylm.network.kernels.dispatch import uses_triton

MAX_TOP = 16
Config = VectorConfig | MatrixConfig


def lm_head_logits_reference(hidden: Tensor, embedding: Tensor, vocab_limit: int) -> Tensor:
    """Compute `lm_head_logits` in plain torch: rounds the logits to the weights' dtype first."""
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32
    logits = F.linear(hidden, embedding).float()
    logits[:, vocab_limit:] = float("-inf")
    return logits


def lm_head_topk_reference(
    hidden: Tensor, embedding: Tensor, k: int, vocab_limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `lm_head_topk` in plain torch."""
    # hidden: [R, D], embedding: [V, D] -> values, ids: [R, k], log-sum-exp: [R]
    logits = lm_head_logits_reference(hidden, embedding, vocab_limit)
    values, ids = logits.topk(k, dim=-1)
    higher, lower_id = values[:, None] > values[:, :, None], ids[:, None] < ids[:, :, None]
    # each token's place is the number of tokens before it; a sort could not be captured on a GPU
    place = (higher | ((values[:, None] == values[:, :, None]) & lower_id)).sum(-1)
    return values.scatter(1, place, values), ids.scatter(1, place, ids).int(), logits.logsumexp(-1)


def lm_head_logits(hidden: Tensor, embedding: Tensor, vocab_limit: int, config: Config | None = None) -> Tensor:
    """Logits of every token: [R, V] fp32, -inf for ids from `vocab_limit` on.

    hidden [R, D] is the output of the final LayerNorm, embedding [V, D] the tied token embedding, both of one dtype.
    """
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32
    if not _fits_kernels(hidden, embedding):
        return lm_head_logits_reference(hidden, embedding, vocab_limit)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_logits

    with torch.cuda.device_of(hidden):
        if config is None and _prefers_library(hidden, embedding):
            logits = _library_logits(hidden, embedding)
            logits[:, vocab_limit:] = float("-inf")
            return logits
        return launch_logits(hidden, embedding, vocab_limit, config or _choose(hidden, embedding))


def lm_head_topk(
    hidden: Tensor, embedding: Tensor, k: int, vocab_limit: int, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's k best tokens, best first, and the log-sum-exp over all tokens below `vocab_limit`.

    Returns values [R, k] fp32 (logits), ids [R, k] int32 (of equal logits the lower id comes first) and [R] fp32. The
    kernels (1 <= k <= 16, CUDA) do not write the logits of up to 64 rows; where fewer than k tokens exist, they fill up
    with -inf and id 0. A row with a logit that is not a number has a log-sum-exp that is none either.
    """
    # hidden: [R, D], embedding: [V, D] -> values, ids: [R, k], log-sum-exp: [R]
    if not _fits_kernels(hidden, embedding) or k > MAX_TOP:
        return lm_head_topk_reference(hidden, embedding, k, vocab_limit)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_topk, launch_topk_of_logits

    with torch.cuda.device_of(hidden):
        if config is None and _prefers_library(hidden, embedding):
            return launch_topk_of_logits(_library_logits(hidden, embedding), k, vocab_limit)
        return launch_topk(hidden, embedding, k, vocab_limit, config or _choose(hidden, embedding))


def _fits_kernels(hidden: Tensor, embedding: Tensor) -> bool:
    # hidden: [R, D]; tensor descriptors need rows of whole 16 bytes
    return len(hidden) > 0 and hidden.shape[1] % 16 == 0 and uses_triton(hidden, embedding)


def _prefers_library(hidden: Tensor, embedding: Tensor) -> bool:
    # hidden: [R, D], embedding: [V, D]
    shape = (len(hidden), embedding.shape[0], embedding.shape[1])
    return hidden.is_cuda and prefers_library(*shape, embedding.dtype, MAX_FP32_LM_HEAD_ROWS)


def _library_logits(hidden: Tensor, embedding: Tensor) -> Tensor:
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32, not rounded
    if embedding.dtype == torch.float32:
        return F.linear(hidden, embedding)
    return torch.mm(hidden, embedding.t(), out_dtype=torch.float32)


def _choose(hidden: Tensor, embedding: Tensor) -> Config:
    return choose_lm_head(len(hidden), embedding.dtype, embedding.device)
