from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.configs import AttentionConfig, key_block
from modelscope_polylm.network.kernels.prefill_attention import prefill_attention, prefill_attention_reference
from tests.network.kernels.random_tensors import random, relative_error

HEADS, HEAD_DIM, TABLE = 2, 32, 200
CPU = torch.device("cpu")
# (positions cached before, new tokens) of each segment
CASES = {
    "one token": [(0, 1)],
    "one prompt": [(0, 33)],
    "prompts of several tiles": [(0, 150), (0, 64), (0, 2)],
    "a cached prefix": [(64, 10)],
    "everything": [(0, 70), (37, 100), (130, 1), (1, 64), (63, 66)],
}


class Arguments:
    """Random arguments of prefill_attention: prefixes are in the cache, the rest is in qkv, after a gap if `gap`."""

    def __init__(self, case, dtype, device, contiguous=False, gap=0, head_dim=HEAD_DIM):
        self.segments = CASES[case] if isinstance(case, str) else case
        count, total = len(self.segments), gap + sum(new for _, new in self.segments)
        slots = (torch.arange if contiguous else torch.randperm)(count * TABLE)
        self.table = slots.int().view(count, TABLE)
        self.rows = torch.randperm(count).tolist()
        self.keys, self.values = (random(HEADS, count * TABLE, head_dim, dtype=dtype, device=device) for _ in range(2))
        self.qkv = random(total, 3 * HEADS * head_dim, dtype=dtype, device=device)
        tiles, self.firsts = [[0, 0, 0, 0, 0]], []
        for row, (cached, new) in zip(self.rows, self.segments, strict=True):
            self.firsts.append(gap)
            tiles += [[row, gap + i, cached + i, min(64, new - i), cached] for i in range(0, new, 64)]
            gap += new
        self.tiles, self.device = torch.tensor(tiles, dtype=torch.int32), device

    def __iter__(self):
        return iter((self.qkv, self.keys, self.values, self.table.to(self.device), self.tiles.to(self.device)))

    def expected(self):
        """From the definition, in float64: the result, and the caches afterwards."""
        new = self.qkv.view(len(self.qkv), 3, HEADS, -1).permute(1, 2, 0, 3)
        keys, values, out = self.keys.clone(), self.values.clone(), torch.zeros_like(new[0], dtype=torch.float64)
        for row, first, (cached, count) in zip(self.rows, self.firsts, self.segments, strict=True):
            tokens, slots = slice(first, first + count), self.table[row, : cached + count].long()
            keys[:, slots[cached:]], values[:, slots[cached:]] = new[1, :, tokens], new[2, :, tokens]
            score = new[0, :, tokens].double() @ keys[:, slots].double().transpose(1, 2) / keys.shape[2] ** 0.5
            hidden = torch.ones_like(score, dtype=torch.bool).triu(cached + 1)
            out[:, tokens] = score.masked_fill(hidden, -torch.inf).softmax(-1) @ values[:, slots].double()
        return out.transpose(0, 1).flatten(1), keys, values

    def check(self, result, tolerance):
        used = slice(self.firsts[0], None)
        assert relative_error(result[used], self.answer[0][used]) < tolerance
        assert torch.equal(self.keys, self.answer[1]) and torch.equal(self.values, self.answer[2])


@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_definition(case, device, dtype, tolerance):
    arguments = Arguments(case, dtype, device, gap=3)
    arguments.answer = arguments.expected()
    arguments.check(prefill_attention(*arguments), tolerance)


@pytest.mark.parametrize("case", ["prompts of several tiles", "everything"])
def test_decoding_gives_the_same_bits(case, device, dtype):
    arguments = Arguments(case, dtype, device)
    result, (qkv, keys, values, table, _) = prefill_attention(*arguments), arguments
    kept, block = (keys.clone(), values.clone()), key_block(dtype)
    for row, first, (cached, new) in zip(arguments.rows, arguments.firsts, arguments.segments, strict=True):
        # some of the segment's tokens, each as the last of a row of its own
        chosen = torch.arange(0, new, 13, dtype=torch.int32, device=device)
        numbers = torch.arange(len(chosen), dtype=torch.int32, device=device)
        groups = torch.stack([numbers, torch.ones_like(numbers)], 1)
        tables, zeros = table[row].expand(len(chosen), -1).contiguous(), torch.zeros_like(numbers)
        state = (tables, numbers, cached + chosen, zeros, groups)
        decoded = decode_attention(qkv[first + chosen], keys, values, *state, AttentionConfig(block, 4, 1, 1))
        assert torch.equal(decoded, result[first + chosen])
    assert torch.equal(keys, kept[0]) and torch.equal(values, kept[1])


def test_cutting_a_segment_into_calls_changes_no_bit(device, dtype):
    whole = Arguments([(0, 150)], dtype, device)
    expected = prefill_attention(*whole)
    qkv, keys, values, table, _ = whole
    keys, values = keys.clone().zero_(), values.clone().zero_()
    parts = []
    for begin, end in ((0, 1), (1, 40), (40, 104), (104, 150)):
        tiles = [[0, i - begin, i, min(64, end - i), begin] for i in range(begin, end, 64)]
        tiles = torch.tensor(tiles, dtype=torch.int32, device=device)
        parts.append(prefill_attention(qkv[begin:end].contiguous(), keys, values, table, tiles))
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("segments", [[(0, 1920)], [(0, 128)] * 64, [(700, 300), (0, 1), (64, 640)]], ids=str)
def test_default_blocks_on_a_device(segments, dtype, monkeypatch):
    monkeypatch.setitem(globals(), "TABLE", 1984)
    arguments = Arguments(segments, dtype, torch.device("cuda"), head_dim=128)
    arguments.answer = arguments.expected()
    arguments.check(prefill_attention(*arguments), 4e-3 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_reference_agrees_with_the_definition(case, contiguous):
    arguments = Arguments(case, torch.float32, CPU, contiguous, gap=3)
    arguments.answer = arguments.expected()
    arguments.check(prefill_attention_reference(*arguments), 2e-6)


def test_no_tiles_write_nothing():
    arguments = Arguments("one prompt", torch.float32, CPU)
    arguments.tiles[:, 3] = 0
    before = arguments.keys.clone()
    assert prefill_attention_reference(*arguments).shape == (33, HEADS * HEAD_DIM)
    assert torch.equal(arguments.keys, before)


def test_reference_runs_segments_of_about_one_length_together():
    segments = [(length % 7 * (length % 3), 1 + length % 40) for length in range(200)]
    arguments = Arguments(segments, torch.float32, CPU, gap=3)
    written = torch.zeros(arguments.keys.shape[1], dtype=torch.bool)
    for row, (cached, new) in zip(arguments.rows, segments, strict=True):
        written[arguments.table[row, : cached + new].long()] = True
    arguments.answer = arguments.expected()
    written[0] = True  # the scratch slot
    for cache in (arguments.keys, arguments.values, *arguments.answer[1:]):
        cache[:, ~written] = torch.nan  # what nobody has written may be anything
    result = prefill_attention_reference(*arguments)
    assert relative_error(result[3:], arguments.answer[0][3:]) < 2e-6
    assert not arguments.keys[:, written].isnan().any()
