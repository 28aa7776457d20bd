from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modelscope_polylm.network.kernels.configs import MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import kernel_settings
from modelscope_polylm.network.kernels.output import (
    output_candidates,
    output_logits,
    top_candidates,
    top_candidates_reference,
)
from tests.network.kernels.random_tensors import random, relative_error

VOCAB, WIDTH = 150, 48
CONFIGS = [
    VectorConfig(block_n=32, block_k=64, warps=2),
    MatrixConfig(block_n=32, block_k=32, warps=4, stages=2),
    MatrixConfig(block_n=64, block_k=32, warps=4, stages=2, swap=True),
]


def arguments(rows, dtype, device):
    return random(rows, WIDTH, dtype=dtype, device=device), random(VOCAB, WIDTH, dtype=dtype, device=device)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("limit", "top"), [(VOCAB, 1), (129, 5)])
def test_candidates_hold_the_best_tokens(config, limit, top, device, dtype):
    hidden, embedding = arguments(3, dtype, device)
    exact = F.linear(hidden.double(), embedding.double())[:, :limit]
    values, ids, log_sum = output_candidates(hidden, embedding, top, limit, config)
    assert values.dtype == log_sum.dtype == torch.float32 and ids.dtype == torch.int32
    assert int(ids.min()) >= 0 and int(ids.max()) < limit
    best, best_ids = top_candidates(values, ids, top)
    expected = exact.topk(top)
    assert torch.equal(best_ids.long(), expected.indices)
    assert relative_error(best, expected.values) < 2e-6
    assert relative_error(log_sum, exact.logsumexp(-1)) < 2e-6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_are_exact_and_end_at_the_limit(config, device, dtype):
    hidden, embedding = arguments(5, dtype, device)
    logits = output_logits(hidden, embedding, 140, config)
    assert logits.dtype == torch.float32 and torch.isneginf(logits[:, 140:]).all()
    assert relative_error(logits[:, :140], F.linear(hidden.double(), embedding.double())[:, :140]) < 2e-6


def test_fewer_tokens_than_places(device):
    hidden, embedding = arguments(1, torch.float32, device)
    values, ids, _ = output_candidates(hidden, embedding, 16, 3, CONFIGS[0])
    best, best_ids = top_candidates(values, ids, 16)
    assert sorted(best_ids[0, :3].tolist()) == [0, 1, 2]
    assert torch.isneginf(best[0, 3:]).all() and (best_ids[0, 3:] == 0).all()


@pytest.mark.parametrize("count", [5, 100, 4097])
def test_top_candidates_prefer_lower_ids_among_equals(count, device):
    # rounded values of both signs are full of ties
    values = (random(3, count, device=device) * 2).round() / 2
    ids = torch.stack([torch.randperm(count) for _ in range(3)]).int().to(device)
    top = min(count, 8)
    result, expected = top_candidates(values, ids, top), top_candidates_reference(values, ids, top)
    order = [
        sorted(zip((-v for v in row), chosen, strict=True))[:top]
        for row, chosen in zip(values.tolist(), ids.tolist(), strict=True)
    ]
    assert expected[1].tolist() == [[token for _, token in row] for row in order]
    assert torch.equal(result[0], expected[0]) and torch.equal(result[1], expected[1])


def test_twins_agree_with_log_softmax():
    hidden, embedding = arguments(2, torch.float32, torch.device("cpu"))
    with kernel_settings("torch"):
        values, ids, log_sum = output_candidates(hidden, embedding, 4, 100)
        logits = output_logits(hidden, embedding, 100)
    expected = F.log_softmax(F.linear(hidden, embedding)[:, :100], -1).topk(4)
    assert torch.allclose(values - log_sum[:, None], expected.values, atol=1e-5)
    assert torch.equal(ids.long(), expected.indices) and logits.shape == (2, VOCAB)
