from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels.attention import decode_attention, decode_attention_reference
from modelscope_polylm.network.kernels.configs import AttentionConfig
from modelscope_polylm.network.kernels.dispatch import counters, kernel_settings
from tests.network.kernels.random_tensors import random, relative_error

HEADS, WIDTH, TABLE = 2, 16, 48
# lengths of the prompt and of the whole row for each group, and rows in a group
CASES = {
    "one row": ([(7, 40)], 1),
    "first token": ([(0, 0)], 1),
    "ragged rows": ([(3, 3), (20, 33), (1, 17)], 1),
    "beams": ([(21, 30)], 4),
    "beams before their first own token": ([(20, 20), (5, 9)], 3),
    "beams without prompt": ([(0, 2)], 2),
}


def slot_table(groups, group):
    # groups: (prompt, length) each -> slot table [R, TABLE], lengths [R], prompt lengths [R], slots in use
    free, rows = iter(torch.randperm(len(groups) * TABLE * group).tolist()), []
    for prompt, length in groups:
        shared = [next(free) for _ in range(prompt)]
        rows += [shared + [next(free) for _ in range(length + 1 - prompt)] for _ in range(group)]
    table = torch.tensor([row + [-1] * (TABLE - len(row)) for row in rows], dtype=torch.int32)
    prompts, lengths = (
        torch.tensor(column, dtype=torch.int32).repeat_interleave(group) for column in zip(*groups, strict=True)
    )
    return table, lengths, prompts, len(groups) * TABLE * group


def arguments(groups, group, dtype, device):
    table, lengths, prompts, slots = slot_table(groups, group)
    keys, values = (random(HEADS, slots, WIDTH, dtype=dtype, device=device) for _ in range(2))
    qkv = random(len(lengths), 3 * HEADS * WIDTH, dtype=dtype, device=device)
    return qkv, keys, values, table.to(device), lengths.to(device), prompts.to(device), group


def exact_attention(qkv, keys, values, table, lengths, prompts, group):
    """Row by row in float64, from the definition."""
    out = []
    for row in range(len(lengths)):
        query, key, value = qkv[row].double().view(3, HEADS, 1, WIDTH)
        slots = table[row, : int(lengths[row])].long()
        row_keys, row_values = (
            torch.cat([keys[:, slots].double(), key], 1),
            torch.cat([values[:, slots].double(), value], 1),
        )
        weights = (query @ row_keys.transpose(1, 2) / WIDTH**0.5).softmax(-1)
        out.append((weights @ row_values).reshape(-1))
    return torch.stack(out)


@pytest.mark.parametrize("config", [None, AttentionConfig(16, 4, 1), AttentionConfig(16, 2, 3)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_definition(case, config, device, dtype, tolerance):
    groups, group = CASES[case]
    qkv, keys, values, *rest = arguments(groups, group, dtype, device)
    expected = exact_attention(qkv, keys, values, *rest)
    twin_keys, twin_values = keys.clone(), values.clone()
    with kernel_settings("torch"):
        decode_attention(qkv, twin_keys, twin_values, *rest)
    assert relative_error(decode_attention(qkv, keys, values, *rest, config), expected) < tolerance
    assert torch.equal(keys, twin_keys) and torch.equal(values, twin_values)
    assert not counters(qkv.device).any()


@pytest.mark.parametrize("case", CASES)
def test_twin_agrees_with_the_definition(case):
    groups, group = CASES[case]
    qkv, keys, values, *rest = arguments(groups, group, torch.float32, torch.device("cpu"))
    expected = exact_attention(qkv, keys, values, *rest)
    assert relative_error(decode_attention_reference(qkv, keys, values, *rest), expected) < 2e-6


def test_new_token_is_written_to_its_slot_only():
    qkv, keys, values, table, lengths, prompts, group = arguments([(2, 5)], 2, torch.float32, torch.device("cpu"))
    before = keys.clone()
    decode_attention_reference(qkv, keys, values, table, lengths, prompts, group)
    changed = (keys != before).any(-1).any(0).nonzero().flatten().tolist()
    assert changed == sorted(int(table[row, 5]) for row in range(2))


def test_split_results_do_not_depend_on_the_run(device):
    qkv, keys, values, *rest = arguments([(10, 40), (3, 20)], 2, torch.float16, device)
    config = AttentionConfig(16, 4, 4)
    first = decode_attention(qkv, keys, values, *rest, config)
    assert all(torch.equal(first, decode_attention(qkv, keys, values, *rest, config)) for _ in range(2))


def test_twin_keeps_softmax_in_fp32_for_bf16():
    qkv, keys, values, *rest = arguments([(7, 40)], 1, torch.bfloat16, torch.device("cpu"))
    expected = exact_attention(qkv, keys, values, *rest)
    result = decode_attention_reference(qkv, keys, values, *rest)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, expected) < 5e-3
