"""Training on a GPU: attention without a mask, the fused loss, bf16 next to fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.training import network
from modelscope_polylm.training.network import VARLEN, attention_for, load_network, trained_model
from modelscope_polylm.training.options import TrainingOptions
from tests.training.test_network import batch_of, gradients, random_examples

LIGER = """
import json, torch
from torch.nn import functional as F
from modelscope_polylm.training.network import _liger_loss
torch.manual_seed(0)
found = []
for learns in (True, False):
    hidden, weight = torch.randn(20, 16, requires_grad=True), torch.randn(53, 16, requires_grad=learns)
    targets = torch.randint(53, (20,))
    wanted = [hidden, weight][: 1 + learns]
    loss = _liger_loss()(weight, hidden, targets)
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    pairs = zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted))
    found.append([float(loss - expected), *(float((one - two).abs().max()) for one, two in pairs)])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_ligers_loss_in_tritons_interpreter() -> None:
    """The kernel that computes the loss on a GPU, on a CPU."""
    pytest.importorskip("liger_kernel")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", LIGER], capture_output=True, text=True, env=variables, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(abs(error) < 1e-3 for errors in json.loads(done.stdout.splitlines()[-1]) for error in errors)


@pytest.mark.gpu
def test_attention_without_a_mask(random_snapshot: Path) -> None:
    gpu = torch.device("cuda")
    assert attention_for(gpu, torch.bfloat16, 128) == VARLEN
    model = load_network(open_snapshot(random_snapshot), gpu, torch.float32, torch.bfloat16).train()
    examples = [(ids.to(gpu), targets.to(gpu)) for ids, targets in random_examples()]
    batch = batch_of(examples, examples[::-1])
    batch["position_ids"] = batch["position_ids"].to(gpu)
    results = {}
    for name in (VARLEN, "sdpa"):
        model.config._attn_implementation = name
        with torch.autocast("cuda", torch.bfloat16):
            results[name] = gradients(model, batch)
    assert results[VARLEN][0] == pytest.approx(results["sdpa"][0], rel=1e-2)
    for name, gradient in results[VARLEN][1].items():
        expected = results["sdpa"][1][name]
        assert (gradient - expected).norm() < 0.05 * expected.norm() + 1e-3, name


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_the_loss_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch, fused: bool, learns: bool) -> None:
    if not fused:
        monkeypatch.setattr(network, "_liger_loss", lambda: None)
    hidden = torch.randn(700, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(256_000, 256, device="cuda") * 0.05).bfloat16().requires_grad_(learns)
    targets = torch.randint(256_000, (700,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = network.tied_head_loss(hidden, weight, targets)
    loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    expected = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-2)
    if not learns:
        assert peak < 700 * 256_000 * 4  # the logits in fp32


@pytest.mark.gpu
def test_a_step_of_lora_in_bf16(random_snapshot: Path) -> None:
    options = TrainingOptions.from_dict({"length": 64}).for_model(256, 256)
    gpu = torch.device("cuda")
    model = trained_model(open_snapshot(random_snapshot), options, gpu, torch.bfloat16, recomputed_blocks=1).train()
    batch = {name: tensor.to(gpu) for name, tensor in batch_of(random_examples()).items()}
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(**batch)["loss"]
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained.values())
