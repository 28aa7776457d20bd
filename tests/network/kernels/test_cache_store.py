from __future__ import annotations

import pytest
import torch

from modelscope_polylm.network.kernels.cache_store import store_keys_values, store_keys_values_reference
from tests.network.kernels.random_tensors import random


@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 2, 16), (7, 3, 32)])
def test_keys_and_values_stand_in_their_slots(tokens, heads, width, device, dtype):
    qkv = random(tokens, 3 * heads * width, dtype=dtype, device=device)
    slots = torch.randperm(20)[:tokens].to(device)
    caches, expected = (torch.zeros(2, heads, 20, width, dtype=dtype, device=device) for _ in range(2))
    store_keys_values(qkv, slots, *caches)
    for token, slot in enumerate(slots.tolist()):
        expected[:, :, slot] = qkv[token].view(3, heads, width)[1:]
    assert torch.equal(caches, expected)
    twin = torch.zeros_like(caches)
    store_keys_values_reference(qkv, slots, *twin)
    assert torch.equal(twin, expected)
