from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels.attention import decode_attention, decode_attention_reference
from modelscope_polylm.network.kernels.configs import AttentionConfig, key_block
from modelscope_polylm.network.kernels.dispatch import counters, kernel_settings
from tests.network.kernels.random_tensors import random, relative_error

HEADS, HEAD_DIM, TABLE = 2, 16, 160
CPU = torch.device("cpu")
# (positions of the prompt, cached positions, rows) of each group
CASES = {
    "one row": [(7, 40, 1)],
    "first token": [(0, 0, 1)],
    "ragged rows": [(3, 3, 1), (20, 133, 1), (1, 17, 1)],
    "full blocks": [(3, 64, 1), (20, 63, 1), (1, 128, 1)],
    "beams": [(21, 30, 4)],
    "beams with a long prompt": [(130, 150, 3)],
    "beams before their first own token": [(20, 20, 3), (64, 64, 2)],
    "beams without prompt": [(0, 2, 2)],
    "mixed groups": [(70, 75, 4), (3, 100, 1), (66, 70, 16), (9, 12, 2)],
}


class Arguments:
    """Random arguments of decode_attention; compact rows and state rows are in different orders."""

    def __init__(self, case, dtype, device, head_dim=HEAD_DIM, contiguous=False):
        groups = CASES[case] if isinstance(case, str) else case
        count = sum(size for *_, size in groups)
        slots = iter(range(count * TABLE) if contiguous else torch.randperm(count * TABLE).tolist())
        self.table = torch.full((count + 3, TABLE), -1, dtype=torch.int32)
        self.lengths = torch.zeros(count + 3, dtype=torch.int32)
        self.prompt_lengths = torch.zeros(count + 3, dtype=torch.int32)
        self.rows = torch.randperm(count + 3)[:count].int()
        self.groups = torch.zeros(count, 2, dtype=torch.int32)
        first = 0
        for entry, (prompt, length, size) in enumerate(groups):
            shared = [next(slots) for _ in range(prompt)]
            for row in self.rows[first : first + size].tolist():
                own = [next(slots) for _ in range(length + 1 - prompt)]
                self.table[row, : length + 1] = torch.tensor(shared + own)
                self.lengths[row], self.prompt_lengths[row] = length, prompt
            self.groups[entry] = torch.tensor([first, size])
            first += size
        self.keys, self.values = (random(HEADS, count * TABLE, head_dim, dtype=dtype, device=device) for _ in range(2))
        self.qkv = random(count, 3 * HEADS * head_dim, dtype=dtype, device=device)
        self.device = device

    def __iter__(self):
        state = (self.table, self.rows, self.lengths, self.prompt_lengths, self.groups)
        return iter((self.qkv, self.keys, self.values, *(tensor.to(self.device) for tensor in state)))

    def exact(self):
        """Row by row in float64, from the definition."""
        out = []
        for i, row in enumerate(self.rows.tolist()):
            query, key, value = self.qkv[i].double().view(3, HEADS, 1, -1)
            slots = self.table[row, : self.lengths[row]].long()
            keys = torch.cat([self.keys[:, slots].double(), key], 1)
            values = torch.cat([self.values[:, slots].double(), value], 1)
            weights = (query @ keys.transpose(1, 2) / key.shape[-1] ** 0.5).softmax(-1)
            out.append((weights @ values).reshape(-1))
        return torch.stack(out)

    def new_slots(self):
        """The slots of the rows' new tokens."""
        return [int(self.table[row, self.lengths[row]]) for row in self.rows]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_definition(case, splits, device, dtype, tolerance):
    arguments = Arguments(case, dtype, device)
    expected, keys, values = arguments.exact(), arguments.keys.clone(), arguments.values.clone()
    result = decode_attention(*arguments, AttentionConfig(key_block(dtype), 4, splits, splits))
    assert relative_error(result, expected) < tolerance
    new = arguments.qkv.view(len(result), 3, HEADS, -1).permute(1, 2, 0, 3)
    keys[:, arguments.new_slots()], values[:, arguments.new_slots()] = new[1], new[2]
    assert torch.equal(arguments.keys, keys) and torch.equal(arguments.values, values)
    assert not counters(arguments.qkv.device).any()


@pytest.mark.parametrize("case", ["ragged rows", "beams with a long prompt", "mixed groups"])
def test_neither_groups_nor_splits_change_a_bit(case, device, dtype):
    arguments = Arguments(case, dtype, device)
    results = [
        decode_attention(*arguments, AttentionConfig(key_block(dtype), 4, splits, splits)) for splits in (1, 2, 5)
    ]
    rows = torch.arange(len(results[0]), dtype=torch.int32)
    arguments.groups = torch.stack([rows, torch.ones_like(rows)], 1)
    results.append(decode_attention(*arguments, AttentionConfig(key_block(dtype), 4, 1, 1)))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_kernel_leaves_rows_in_no_group_alone(device):
    arguments = Arguments([(2, 5, 1), (3, 7, 1), (4, 4, 1)], torch.float32, device)
    expected, before = arguments.exact(), arguments.keys.clone()
    arguments.groups[1, 1] = 0
    result = decode_attention(*arguments)
    changed = (arguments.keys != before).any(-1).any(0).nonzero().flatten().tolist()
    assert changed == sorted(arguments.new_slots()[row] for row in (0, 2))
    assert relative_error(result[[0, 2]], expected[[0, 2]]) < 2e-6


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_reference_agrees_with_the_definition(case, contiguous):
    arguments = Arguments(case, torch.float32, CPU, contiguous=contiguous)
    expected = arguments.exact()
    assert relative_error(decode_attention_reference(*arguments), expected) < 2e-6


def test_reference_runs_long_rows_one_by_one():
    arguments = Arguments([(150, 159, 2), (20, 80, 1)], torch.float32, CPU, head_dim=64)
    expected = arguments.exact()
    assert relative_error(decode_attention_reference(*arguments), expected) < 2e-6


def test_new_token_is_written_to_its_slot_only():
    arguments = Arguments([(2, 5, 2)], torch.float32, CPU)
    before = arguments.keys.clone()
    decode_attention_reference(*arguments)
    changed = (arguments.keys != before).any(-1).any(0).nonzero().flatten().tolist()
    assert changed == sorted(arguments.new_slots())


@pytest.mark.parametrize("unused", [0, 2])
def test_rows_in_no_group_are_not_stored(unused):
    arguments = Arguments([(2, 5, 1), (3, 7, 1), (4, 4, 1)], torch.float32, CPU)
    expected, before = arguments.exact(), arguments.keys.clone()
    arguments.groups[unused, 1] = 0
    result = decode_attention_reference(*arguments)
    used = [row for row in range(3) if row != unused]
    changed = (arguments.keys != before).any(-1).any(0).nonzero().flatten().tolist()
    assert changed == sorted(arguments.new_slots()[row] for row in used)
    assert relative_error(result[used], expected[used]) < 2e-6


def test_reference_takes_fewer_groups_than_rows():
    arguments = Arguments([(2, 5, 3), (3, 7, 2)], torch.float32, CPU)
    arguments.groups[1, 1] = 1
    expected, before = arguments.exact(), arguments.keys.clone()
    arguments.groups = arguments.groups[:2]
    result = decode_attention_reference(*arguments)
    changed = (arguments.keys != before).any(-1).any(0).nonzero().flatten().tolist()
    assert changed == sorted(arguments.new_slots()[:4])
    assert relative_error(result[:4], expected[:4]) < 2e-6


def test_reference_keeps_softmax_in_fp32_for_bf16():
    arguments = Arguments("one row", torch.bfloat16, CPU)
    expected = arguments.exact()
    with kernel_settings("torch"):
        result = decode_attention(*arguments)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, expected) < 5e-3
