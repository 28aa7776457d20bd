from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels.configs import PrefillAttentionConfig, choose_prefill_attention
from modelscope_polylm.network.kernels.dispatch import kernel_settings
from modelscope_polylm.network.kernels.prefill_attention import prefill_attention
from tests.network.kernels.random_tensors import random, relative_error

CONFIGS = [PrefillAttentionConfig(32, 16, warps=4, stages=2), PrefillAttentionConfig(64, 64, warps=4, stages=2)]
# prompts, length, heads, head width; no length but 32 divides the blocks
SHAPES = [(1, 1, 1, 16), (3, 33, 2, 32), (2, 32, 2, 16), (1, 70, 1, 64)]
HALVES = pytest.mark.parametrize("dtype", [torch.float16], ids=["fp16"])


def exact_attention(qkv, prompts, heads):
    """Row by row in float64, from the definition."""
    rows = []
    for prompt in qkv.double().view(prompts, -1, 3, heads, qkv.shape[1] // 3 // heads):
        query, key, value = prompt.permute(1, 2, 0, 3)
        score = query @ key.transpose(1, 2) / key.shape[2] ** 0.5
        hidden = torch.ones_like(score, dtype=torch.bool).triu(1)
        rows.append((score.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(0, 1).flatten(1))
    return torch.cat(rows)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@HALVES
def test_kernel_agrees_with_the_definition(shape, config, device, dtype):
    prompts, length, heads, width = shape
    qkv = random(prompts * length, 3 * heads * width, dtype=dtype, device=device)
    assert (
        relative_error(prefill_attention(qkv, prompts, heads, config=config), exact_attention(qkv, prompts, heads))
        < 1e-3
    )


@pytest.mark.parametrize("mode", ["triton", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@HALVES
def test_keys_and_values_stand_in_their_slots(shape, mode, device, dtype):
    prompts, length, heads, width = shape
    tokens = prompts * length
    qkv = random(tokens, 3 * heads * width, dtype=dtype, device=device)
    slots = torch.randperm(tokens + 9)[:tokens].to(device)
    caches, expected = (torch.zeros(2, heads, tokens + 9, width, dtype=dtype, device=device) for _ in range(2))
    for token, slot in enumerate(slots.tolist()):
        expected[:, :, slot] = qkv[token].view(3, heads, width)[1:]
    with kernel_settings(mode):
        result = prefill_attention(qkv, prompts, heads, (slots, *caches), CONFIGS[0])
    assert torch.equal(caches, expected)
    assert relative_error(result, exact_attention(qkv, prompts, heads)) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("prompts", "length"), [(1, 1920), (1, 1), (3, 129), (2, 700), (20000, 1)])
def test_default_blocks_on_a_device(prompts, length):
    with kernel_settings("triton"):
        qkv = random(prompts * length, 3 * 4 * 128, dtype=torch.bfloat16, device=torch.device("cuda"))
        result = prefill_attention(qkv, prompts, 4, config=choose_prefill_attention())
    assert relative_error(result, exact_attention(qkv, prompts, 4)) < 4e-3
