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
    QuantizedConfig,
    VectorConfig,
    choose_lm_head,
    choose_quantized_lm_head,
    prefers_library,
)
from modelscope_polylm.network.kernels.dispatch import uses_triton
from modelscope_polylm.network.kernels.linear import library_product
from modelscope_polylm.network.kernels.quantized import plain
from modelscope_polylm.network.quantization import QuantizedMatrix, Weight

MAX_TOP = 16
LOW_BITS = 0x7FFFFFFF
Config = VectorConfig | MatrixConfig | QuantizedConfig


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
    return *best_tokens(logits, k), logits.logsumexp(-1)


def lm_head_logits(hidden: Tensor, embedding: Weight, vocab_limit: int, config: Config | None = None) -> Tensor:
    """Logits of every token: [R, V] fp32, -inf for ids from `vocab_limit` on.

    hidden [R, D] is the output of the final LayerNorm, embedding [V, D] the tied token embedding, both of one dtype, in
    which a quantised embedding is multiplied.
    """
    # hidden: [R, D], embedding: [V, D] -> [R, V] fp32
    if not _fits_kernels(hidden, embedding):
        return lm_head_logits_reference(hidden, plain(embedding), vocab_limit)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_logits

    config = config or _choose(hidden, embedding)
    with torch.cuda.device_of(hidden):
        if config is not None:
            return launch_logits(hidden, embedding, vocab_limit, config)
        logits = library_product(hidden, plain(embedding))
        logits[:, vocab_limit:] = float("-inf")
        return logits


def lm_head_topk(
    hidden: Tensor, embedding: Weight, k: int, vocab_limit: int, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's k best tokens, best first, and the log-sum-exp over all tokens below `vocab_limit`.

    Returns values [R, k] fp32 (logits), ids [R, k] int32 (of equal logits the lower id comes first) and [R] fp32. The
    kernels (1 <= k <= 16, CUDA) do not write the logits of up to 64 rows in 16 bits; where fewer than k tokens exist,
    they fill up with -inf and id 0. A row with a logit that is not a number has a log-sum-exp that is none either.
    """
    # hidden: [R, D], embedding: [V, D] -> values, ids: [R, k], log-sum-exp: [R]
    if not _fits_kernels(hidden, embedding):
        return lm_head_topk_reference(hidden, plain(embedding), k, vocab_limit)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_topk, launch_topk_of_logits

    config = config or _choose(hidden, embedding)
    with torch.cuda.device_of(hidden):
        if isinstance(config, (MatrixConfig, QuantizedConfig)) and k <= MAX_TOP:
            return launch_topk(hidden, embedding, k, vocab_limit, config)
        logits = lm_head_logits(hidden, embedding, vocab_limit, config)
        if k <= MAX_TOP:
            return launch_topk_of_logits(logits, k, vocab_limit)
        return *best_tokens(logits, k), log_sum_exp(logits)


def best_tokens(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Each row's k best tokens, best first: values [R, k] fp32 and ids [R, k] int32; of equal ones the lower id first.

    `torch.topk` takes any of equal ones, and others for other numbers of rows.
    """
    # scores: [R, V] fp32 -> [R, k], [R, k]
    if k <= 1:
        ids = scores.argmax(-1, keepdim=True)[:, :k]  # the first of equal ones
        return scores.gather(1, ids), ids.int()
    bits = scores.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ LOW_BITS, bits).long()
    keys = (ordered << 32) | (LOW_BITS - torch.arange(scores.shape[1], device=scores.device))
    ids = LOW_BITS - (keys.topk(k, dim=-1).values & LOW_BITS)
    return scores.gather(1, ids), ids.int()


def topk_of_logits(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `lm_head_topk` returns, of logits [R, V] fp32 that are there; k may be 0."""
    # logits: [R, V] -> values, ids: [R, k], log-sum-exp: [R]
    if not uses_triton(logits) or k > MAX_TOP:
        return *best_tokens(logits, k), log_sum_exp(logits)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_topk_of_logits

    with torch.cuda.device_of(logits):
        values, ids, sums = launch_topk_of_logits(logits, max(k, 1), logits.shape[1])
    return values[:, :k], ids[:, :k], sums


def log_sum_exp(logits: Tensor) -> Tensor:
    """The log-sum-exp [R] fp32 of logits [R, V] fp32; the kernel's has the same bits as that of `lm_head_topk`."""
    # logits: [R, V] -> [R]
    if not uses_triton(logits):
        return logits.logsumexp(-1)
    from modelscope_polylm.network.kernels.lm_head_triton import launch_topk_of_logits

    with torch.cuda.device_of(logits):
        return launch_topk_of_logits(logits, 1, logits.shape[1])[2]


def _fits_kernels(hidden: Tensor, embedding: Weight) -> bool:
    # hidden: [R, D]; tensor descriptors need rows of whole 16 bytes
    read = (embedding.words, embedding.scales) if isinstance(embedding, QuantizedMatrix) else (embedding,)
    return len(hidden) > 0 and hidden.shape[1] % 16 == 0 and uses_triton(hidden, *read)


def _choose(hidden: Tensor, embedding: Weight) -> Config | None:
    # hidden: [R, D], embedding: [V, D]; None: the library's product
    if isinstance(embedding, QuantizedMatrix):
        return choose_quantized_lm_head(len(hidden), embedding, hidden.device)
    rows, dtype = len(hidden), embedding.dtype
    # where rows of logits are not whole 16 bytes, the library has other kernels, whose bits are others
    is_aligned = len(embedding) % 4 == 0
    if is_aligned and hidden.is_cuda and prefers_library(rows, dtype, MAX_FP32_LM_HEAD_ROWS):
        return None
    return choose_lm_head(rows, dtype, embedding.device)
