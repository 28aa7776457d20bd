from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modelscope_polylm.network.kernels.configs import LM_HEAD_TILE, MatrixConfig, VectorConfig
from modelscope_polylm.network.kernels.dispatch import kernel_settings, settings
from modelscope_polylm.network.kernels.lm_head import (
    lm_head_logits,
    lm_head_topk,
    lm_head_topk_reference,
    topk_of_logits,
)
from tests.network.kernels.random_tensors import random, relative_error

VOCAB, HIDDEN_SIZE = 150, 48
CONFIGS = [
    VectorConfig(block_m=2, block_n=32, block_k=64, warps=2),
    MatrixConfig(block_m=16, block_n=32, block_k=32, warps=4, stages=2),
    MatrixConfig(block_m=16, block_n=64, block_k=32, warps=4, stages=2),
]


def arguments(rows, dtype, device):
    hidden = random(rows, HIDDEN_SIZE, dtype=dtype, device=device)
    return hidden, random(VOCAB, HIDDEN_SIZE, dtype=dtype, device=device)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("rows", "limit", "top"), [(3, VOCAB, 1), (18, 129, 5)])
def test_best_tokens_and_log_sum_exp(config, rows, limit, top, device, dtype):
    hidden, embedding = arguments(rows, dtype, device)
    exact = F.linear(hidden.double(), embedding.double())[:, :limit]
    values, ids, log_sum = lm_head_topk(hidden, embedding, top, limit, config)
    assert values.dtype == log_sum.dtype == torch.float32 and ids.dtype == torch.int32
    expected = exact.topk(top)
    assert torch.equal(ids.long(), expected.indices)
    assert relative_error(values, expected.values) < 2e-6
    assert relative_error(log_sum, exact.logsumexp(-1)) < 2e-6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_are_exact_and_end_at_the_limit(config, device, dtype):
    hidden, embedding = arguments(18, dtype, device)
    logits = lm_head_logits(hidden, embedding, 140, config)
    assert logits.dtype == torch.float32 and torch.isneginf(logits[:, 140:]).all()
    assert relative_error(logits[:, :140], F.linear(hidden.double(), embedding.double())[:, :140]) < 2e-6


def test_fewer_tokens_than_asked_for(device):
    hidden, embedding = arguments(1, torch.float32, device)
    values, ids, _ = lm_head_topk(hidden, embedding, 16, 3, CONFIGS[0])
    assert sorted(ids[0, :3].tolist()) == [0, 1, 2]
    assert torch.isneginf(values[0, 3:]).all() and (ids[0, 3:] == 0).all()


@pytest.mark.parametrize(("vocab", "top"), [(300, 1), (300, 7), (5_000, 3)])
def test_lower_ids_come_first_among_equals(vocab, top, device):
    # one input and few different weights: every logit is shared by many tokens; 5,000 of them need two reductions
    hidden = torch.ones(2, 16, device=device)
    embedding = torch.zeros(vocab, 16, device=device)
    embedding[:, 0] = torch.randint(-3, 4, (vocab,)).to(device)
    values, ids, log_sum = lm_head_topk(hidden, embedding, top, vocab, VectorConfig(2, 16, 16, 1))
    order = sorted((-value, token) for token, value in enumerate(embedding[:, 0].tolist()))[:top]
    assert ids.tolist() == [[token for _, token in order]] * 2
    assert values.tolist() == [[-value for value, _ in order]] * 2
    assert relative_error(log_sum, lm_head_topk_reference(hidden, embedding, top, vocab)[2]) < 2e-6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_logit_that_is_not_a_number_stays_visible(config, device):
    hidden, embedding = arguments(3, torch.float32, device)
    embedding[77] = float("nan")
    hidden[1] = 0
    _, _, log_sum = lm_head_topk(hidden, embedding, 2, VOCAB, config)
    assert torch.isnan(log_sum).all()
    assert torch.isnan(lm_head_logits(hidden, embedding, VOCAB, config)[:, 77]).all()


def test_the_log_sum_exp_does_not_depend_on_the_tokens_asked_for(device):
    hidden, embedding = arguments(3, torch.float16, device)
    sums = [lm_head_topk(hidden, embedding, k, VOCAB, CONFIGS[1])[2] for k in (1, 2, 8, 16)]
    assert all(torch.equal(sums[0], other) for other in sums)


def test_candidates_of_given_logits_are_the_same(device):
    from modelscope_polylm.network.kernels.lm_head_triton import launch_topk_of_logits

    hidden, embedding = arguments(18, torch.float16, device)
    config = MatrixConfig(block_m=16, block_n=LM_HEAD_TILE, block_k=32, warps=4, stages=2)
    expected = lm_head_topk(hidden, embedding, 5, 140, config)
    found = launch_topk_of_logits(lm_head_logits(hidden, embedding, 140, config), 5, 140)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for top in (0, 1, 5):
        logits = lm_head_logits(hidden, embedding, 140, config)
        values, ids, log_sum = topk_of_logits(logits, top)
        assert torch.equal(values, expected[0][:, :top]) and torch.equal(ids, expected[1][:, :top])
        assert relative_error(log_sum, expected[2]) < 2e-6


@pytest.mark.parametrize("top", [0, 1, 4])
def test_best_of_given_logits(top):
    logits = torch.tensor([[0.5, 2.0, -1.0, 2.0, 2.0, 0.5], [-3.0, -3.0, -4.0, -3.5, -3.0, -5.0]])
    with kernel_settings("torch"):
        values, ids, log_sum = topk_of_logits(logits, top)
    assert ids.tolist() == [[1, 3, 4, 0][:top], [0, 1, 4, 3][:top]]
    assert torch.equal(values, logits.gather(1, ids.long())) and ids.dtype == torch.int32
    assert torch.equal(log_sum, logits.logsumexp(-1))


def test_references_agree_with_log_softmax():
    hidden, embedding = arguments(2, torch.float32, torch.device("cpu"))
    with kernel_settings("torch"):
        values, ids, log_sum = lm_head_topk(hidden, embedding, 4, 100)
        logits = lm_head_logits(hidden, embedding, 100)
    expected = F.log_softmax(F.linear(hidden, embedding)[:, :100], -1).topk(4)
    assert torch.allclose(values - log_sum[:, None], expected.values, atol=1e-5)
    assert torch.equal(ids.long(), expected.indices) and logits.shape == (2, VOCAB)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
# the library has other kernels for an odd number of outputs
@pytest.mark.parametrize("vocab", [20_032, 20_003])
@pytest.mark.parametrize("hidden_size", [5120, 256])
def test_every_number_of_rows_gives_the_same_bits_on_a_device(vocab, hidden_size, dtype, monkeypatch):
    monkeypatch.setattr(settings, "deterministic", True)
    device = torch.device("cuda")
    hidden = random(256, hidden_size, dtype=dtype, device=device)
    embedding = random(vocab, hidden_size, dtype=dtype, device=device, scale=hidden_size**-0.5)
    values, ids, log_sum = lm_head_topk(hidden, embedding, 20, vocab - 3)
    logits = lm_head_logits(hidden, embedding, vocab - 3)
    assert torch.equal(logits.gather(1, ids.long()), values)
    assert relative_error(log_sum, logits.double().logsumexp(-1)) < 1e-7
    for rows in (1, 2, 3, 4, 7, 16, 17, 32, 33, 64, 65, 128, 200):
        part = hidden[-rows:].contiguous()
        for k in (1, 2, 8, 16, 20):
            some = lm_head_topk(part, embedding, k, vocab - 3)
            assert torch.equal(some[0], values[-rows:, :k]) and torch.equal(some[1], ids[-rows:, :k])
            assert torch.equal(some[2], log_sum[-rows:]), f"{rows} rows, {k} tokens"
        assert torch.equal(lm_head_logits(part, embedding, vocab - 3), logits[-rows:])
