from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import kernel_settings
from modelscope_polylm.network.kernels.lm_head import (
    lm_head_logits,
    lm_head_topk,
    lm_head_topk_reference,
)
from tests.network.kernels.random_tensors import random, relative_error

VOCAB, WIDTH = 150, 48
CONFIGS = [
    VectorConfig(block_n=32, block_k=64, warps=2),
    MatrixConfig(block_n=32, block_k=32, warps=4, stages=2),
    MatrixConfig(block_n=64, block_k=32, warps=4, stages=2),
]


def arguments(rows, dtype, device):
    return random(rows, WIDTH, dtype=dtype, device=device), random(VOCAB, WIDTH, dtype=dtype, device=device)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("limit", "top"), [(VOCAB, 1), (129, 5)])
def test_best_tokens_and_log_sum(config, limit, top, device, dtype):
    hidden, embedding = arguments(3, dtype, device)
    exact = F.linear(hidden.double(), embedding.double())[:, :limit]
    values, ids, log_sum = lm_head_topk(hidden, embedding, top, limit, config)
    assert values.dtype == log_sum.dtype == torch.float32 and ids.dtype == torch.int32
    expected = exact.topk(top)
    assert torch.equal(ids.long(), expected.indices)
    assert relative_error(values, expected.values) < 2e-6
    assert relative_error(log_sum, exact.logsumexp(-1)) < 2e-6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_are_exact_and_end_at_the_limit(config, device, dtype):
    hidden, embedding = arguments(5, dtype, device)
    logits = lm_head_logits(hidden, embedding, 140, config)
    assert logits.dtype == torch.float32 and torch.isneginf(logits[:, 140:]).all()
    assert relative_error(logits[:, :140], F.linear(hidden.double(), embedding.double())[:, :140]) < 2e-6


def test_fewer_tokens_than_places(device):
    hidden, embedding = arguments(1, torch.float32, device)
    values, ids, _ = lm_head_topk(hidden, embedding, 16, 3, CONFIGS[0])
    assert sorted(ids[0, :3].tolist()) == [0, 1, 2]
    assert torch.isneginf(values[0, 3:]).all() and (ids[0, 3:] == 0).all()


@pytest.mark.parametrize(("vocab", "top"), [(300, 1), (300, 7), (40_000, 3)])
def test_lower_ids_come_first_among_equals(vocab, top, device):
    # one input and few different weights: every logit is shared by many tokens; 40,000 of them need two reductions
    hidden = torch.ones(2, 16, device=device)
    embedding = torch.zeros(vocab, 16, device=device)
    embedding[:, 0] = torch.randint(-3, 4, (vocab,)).to(device)
    values, ids, log_sum = lm_head_topk(hidden, embedding, top, vocab, VectorConfig(16, 16, 1))
    order = sorted((-value, token) for token, value in enumerate(embedding[:, 0].tolist()))[:top]
    assert ids.tolist() == [[token for _, token in order]] * 2
    assert values.tolist() == [[-value for value, _ in order]] * 2
    assert relative_error(log_sum, lm_head_topk_reference(hidden, embedding, top, vocab)[2]) < 2e-6


def test_twins_agree_with_log_softmax():
    hidden, embedding = arguments(2, torch.float32, torch.device("cpu"))
    with kernel_settings("torch"):
        values, ids, log_sum = lm_head_topk(hidden, embedding, 4, 100)
        logits = lm_head_logits(hidden, embedding, 100)
    expected = F.log_softmax(F.linear(hidden, embedding)[:, :100], -1).topk(4)
    assert torch.allclose(values - log_sum[:, None], expected.values, atol=1e-5)
    assert torch.equal(ids.long(), expected.indices) and logits.shape == (2, VOCAB)
