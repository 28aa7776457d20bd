"""The network as it is trained: its loss, its packed attention, its residual stream."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn import functional as F

from modelscope_polylm.network.weights import PROJECTION, projection_bytes
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.training import network
from modelscope_polylm.training.collate import IGNORED
from modelscope_polylm.training.network import (
    TrainedGPT2,
    example_starts,
    load_network,
    tied_head_loss,
    trained_model,
)
from modelscope_polylm.training.options import TrainingOptions
from modelscope_polylm.training.projections import QuantizedConv1D
from tests.snapshots import build_snapshot

CPU = torch.device("cpu")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> TrainedGPT2:
    return load_network(open_snapshot(folder), CPU, dtype, dtype).train()


@pytest.fixture
def model(random_snapshot: Path) -> TrainedGPT2:
    return loaded(random_snapshot)


def random_examples(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Ids and what each position is to predict; some of it is not learnt."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for number in range(count):
        ids, targets = torch.randint(3, 400, (2, 9 + 4 * number), generator=generator)
        targets[: 2 + number] = IGNORED
        examples.append((ids, targets))
    return examples


def batch_of(*rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Rows of packed examples, all of one length."""
    return {
        "input_ids": torch.stack([torch.cat([ids for ids, _ in row]) for row in rows]),
        "shift_labels": torch.stack([torch.cat([targets for _, targets in row]) for row in rows]),
        "position_ids": torch.stack([torch.cat([torch.arange(len(ids)) for ids, _ in row]) for row in rows]),
    }


def gradients(model: TrainedGPT2, *batches: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch)["loss"]
        loss.backward()
        total += loss.item()
    named = model.named_parameters()
    return total, {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


@pytest.mark.parametrize("weight_learns", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_loss_in_chunks(monkeypatch: pytest.MonkeyPatch, rows: int, weight_learns: bool) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(network, "CHUNK_LOGITS", rows * 53)
    hidden = torch.randn(20, 16, requires_grad=True)
    weight = torch.randn(53, 16, requires_grad=weight_learns)
    targets = torch.randint(53, (20,))
    expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    loss = tied_head_loss(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    wanted = [hidden, weight] if weight_learns else [hidden]
    for ours, theirs in zip(
        torch.autograd.grad(loss * 0.5, wanted), torch.autograd.grad(expected * 0.5, wanted), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_of_bf16_weights_is_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2000, 16), torch.randn(53, 16).bfloat16()
    targets = torch.randint(53, (2000,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = tied_head_loss(hidden, weight, targets)
    expected = F.cross_entropy(F.linear(hidden.bfloat16(), weight).float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_the_logits_of_a_row_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """PolyLM's vocabulary and context: the largest tensor that is made has at most CHUNK_LOGITS numbers."""
    largest = 0
    made = F.linear

    def noting(*arguments: Tensor) -> Tensor:
        nonlocal largest
        result = made(*arguments)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(network.F, "linear", noting)
    monkeypatch.setattr(network, "CHUNK_LOGITS", network.CHUNK_LOGITS // 64)
    hidden, weight = torch.randn(32, 4, requires_grad=True), torch.randn(256_000, 4)
    tied_head_loss(hidden, weight, torch.arange(32)).backward()
    assert 0 < largest <= network.CHUNK_LOGITS < 32 * 256_000


def test_nothing_to_learn_is_no_loss() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = tied_head_loss(hidden, torch.randn(5, 4), torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


def test_the_loss_is_that_of_transformers(model: TrainedGPT2) -> None:
    (ids, targets), *_ = random_examples()
    batch = batch_of([(ids, targets)])
    hidden = model.transformer(batch["input_ids"]).last_hidden_state
    expected = F.cross_entropy(model.lm_head(hidden)[0], targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(model(**batch)["loss"], expected)


def test_packed_is_as_unpacked(model: TrainedGPT2) -> None:
    examples = random_examples()
    alone, expected = gradients(model, *(batch_of([example]) for example in examples))
    packed, found = gradients(model, batch_of(examples))
    assert packed == pytest.approx(alone, rel=1e-5)
    assert found.keys() == expected.keys() and len(found) > 20
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_rows_that_are_packed_differently(model: TrainedGPT2) -> None:
    first, second, third = random_examples()
    one, _ = gradients(model, batch_of([first, second], [second, first]))
    other, _ = gradients(model, batch_of([first, second]), batch_of([second, first]))
    assert one == pytest.approx(other, rel=1e-5)
    leaky = batch_of([first, second, third])
    leaky["position_ids"] = torch.arange(leaky["input_ids"].shape[1])[None]
    assert gradients(model, leaky)[0] != pytest.approx(gradients(model, batch_of([first, second, third]))[0], rel=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(model: TrainedGPT2, checkpointing: bool) -> None:
    batch = batch_of(random_examples())
    _, expected = gradients(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _, found = gradients(model, batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_the_residual_stream_in_fp32(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, dtype=torch.bfloat16, layers=8)
    ids = torch.arange(3, 60)[None]
    exact = loaded(folder).transformer(ids).last_hidden_state.detach()
    errors = {}
    for dtype in (None, torch.float32):
        model = loaded(folder, torch.bfloat16)
        model.keep_residual_in(dtype)
        seen: list[torch.dtype] = []
        model.transformer.h[7].register_forward_hook(lambda *call, seen=seen: seen.append(call[2].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.transformer(ids).last_hidden_state.detach().float()
            errors[dtype] = float((hidden - exact).norm())
        assert seen == [dtype or torch.bfloat16]
    assert errors[torch.float32] < 0.9 * errors[None]


@pytest.mark.parametrize("layout", ["bin-sharded", "safetensors"])
def test_every_layout_loads(tmp_path: Path, model: TrainedGPT2, layout: str) -> None:
    other = loaded(build_snapshot(tmp_path, layout))
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert other.lm_head.weight is other.transformer.wte.weight
    assert not any(parameter.is_meta for parameter in other.parameters())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_over_quantised_weights_learns_as_over_their_plain_numbers(
    random_snapshot: Path, quantization: str, checkpointing: bool
) -> None:
    snapshot = open_snapshot(random_snapshot)
    options = TrainingOptions.from_dict({"quantization": quantization}).for_model(256, 256)
    recomputed = snapshot.config.layers if checkpointing else 0
    model = trained_model(snapshot, options, CPU, torch.float32, recomputed_blocks=recomputed)
    frozen: Any = model.get_submodule("base_model.model")
    quantised = {name: each for name, each in frozen.named_modules() if isinstance(each, QuantizedConv1D)}
    assert len(quantised) == 4 * snapshot.config.layers
    unquantised = dataclasses.replace(options, quantization=None)
    plain_model = trained_model(snapshot, unquantised, CPU, torch.float32, recomputed_blocks=0)
    network: Any = plain_model.get_submodule("base_model.model")
    network.transformer.wte.weight.data.copy_(frozen.transformer.wte.weight)
    for name, each in quantised.items():
        network.get_submodule(name).weight.data.copy_(each.weight)
    changed = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = dict(plain_model.named_parameters())
    assert changed and all("lora_" in name for name in changed)
    for name, parameter in changed.items():
        parameter.data.normal_(0, 0.05)
        others[name].data.copy_(parameter)
    loss, found = gradients(model, batch_of(random_examples()))  # type: ignore[arg-type]
    expected_loss, expected = gradients(plain_model, batch_of(random_examples()))  # type: ignore[arg-type]
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys() == changed.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)


def adapted(folder: Path, dtype: torch.dtype = torch.float32, recomputed: int = 0, **given: Any) -> Any:
    """A network within an adapter whose both factors are random."""
    options = TrainingOptions.from_dict(given).for_model(256, 256)
    model = trained_model(open_snapshot(folder), options, CPU, dtype, recomputed_blocks=recomputed).train()
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.05)
    return model


@pytest.mark.parametrize("quantization", [None, "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_in_one_product_is_pefts(
    random_snapshot: Path, dtype: torch.dtype, quantization: str | None
) -> None:
    model = adapted(random_snapshot, dtype, quantization=quantization, lora_rank=4, lora_alpha=12.0)
    batch = batch_of(random_examples())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, found = gradients(model, batch)
        layers = [each for each in model.modules() if isinstance(each, Linear)]
        for layer in layers:
            del layer.forward  # peft's own is the class's
        expected_loss, expected = gradients(model, batch)
    assert len(layers) == 4 * open_snapshot(random_snapshot).config.layers
    assert found.keys() == expected.keys() and all("lora_" in name for name in found)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert loss == pytest.approx(expected_loss, rel=1e-5 if dtype == torch.float32 else 0.01)
    for name, gradient in expected.items():
        assert found[name].dtype == gradient.dtype == torch.float32
        assert float((found[name] - gradient).norm() / gradient.norm()) < tolerance, name


def test_an_adapter_whose_inputs_are_dropped_is_computed_by_peft(random_snapshot: Path) -> None:
    model = adapted(random_snapshot, lora_dropout=0.5)
    assert not any("forward" in vars(each) for each in model.modules())
    assert gradients(model, batch_of(random_examples()))[1]


@pytest.mark.parametrize("recomputed", [1, 2])
def test_blocks_that_compute_their_activations_again(random_snapshot: Path, recomputed: int) -> None:
    batch = batch_of(random_examples())
    loss, expected = gradients(adapted(random_snapshot), batch)
    model = adapted(random_snapshot, recomputed=recomputed)
    calls: list[int] = []
    for number, block in enumerate(model.get_submodule("base_model.model").transformer.h):
        block.mlp.register_forward_pre_hook(lambda *call, number=number: calls.append(number))
    again, found = gradients(model, batch)
    assert sorted(calls) == sorted([*range(2), *range(recomputed)])
    assert again == loss and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_matrix_is_there_twice_while_weights_are_loaded(
    random_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = open_snapshot(random_snapshot)
    load = snapshot.weight_files.load
    loaded_weights: dict[str, weakref.ref[Tensor]] = {}

    def noting(*arguments: Any) -> dict[str, Tensor]:
        weights = load(*arguments)
        loaded_weights.update((name, weakref.ref(each)) for name, each in weights.items() if PROJECTION.fullmatch(name))
        return weights

    def assigned(model: TrainedGPT2, tensors: dict[str, Tensor], **more: Any) -> Any:
        assert [name for name, weight in loaded_weights.items() if weight() is not None] == []
        return load_state_dict(model, tensors, **more)

    load_state_dict = TrainedGPT2.load_state_dict
    monkeypatch.setattr(snapshot.weight_files, "load", noting)
    monkeypatch.setattr(TrainedGPT2, "load_state_dict", assigned)
    load_network(snapshot, CPU, torch.float32, torch.float32)
    assert len(loaded_weights) == 4 * snapshot.config.layers


def test_quantised_weights_keep_no_plain_numbers(random_snapshot: Path) -> None:
    snapshot = open_snapshot(random_snapshot)
    model = load_network(snapshot, CPU, torch.bfloat16, torch.bfloat16, "int4")
    held = sum(each.numel() * each.element_size() for each in model.parameters())
    matrices = [each.matrix.nbytes for each in model.modules() if isinstance(each, QuantizedConv1D)]
    projections = projection_bytes(snapshot.config, 2)
    assert held == 2 * snapshot.config.parameters - projections
    assert sum(matrices) == projection_bytes(snapshot.config, 2, "int4") < projections / 1.9
    assert model(**batch_of(random_examples()))["loss"].isfinite()


def test_where_examples_begin() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    found = example_starts(positions)
    assert found["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 10]
    assert found["cu_seq_lens_q"].dtype == torch.int32
    assert found["max_length_k"] == 4


def test_the_gpus_attention_gets_what_it_needs(model: TrainedGPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds reach every layer through transformers; the kernel itself is stood in for by torch's attention."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attention_by_parts)
    from transformers import AttentionInterface

    AttentionInterface.register(network.VARLEN, network._varlen_attention)
    first, second, third = random_examples()
    batch = batch_of([first, second, third], [third, first, second])
    expected, wanted = gradients(model, batch)
    model.config._attn_implementation = network.VARLEN
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found, given = gradients(model, batch)
    assert found == pytest.approx(expected, rel=1e-5)
    for name in wanted:
        torch.testing.assert_close(given[name], wanted[name], rtol=1e-4, atol=1e-4, msg=name)


def attention_by_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """What torch documents of varlen_attn."""
    # query, key, value: [tokens, heads, head_dim] -> the same
    assert torch.equal(bounds, key_bounds) and longest == longest_key == int(bounds.diff().max())
    assert window_size == (-1, 0)
    parts = [tensor.transpose(0, 1).split(bounds.diff().tolist(), dim=1) for tensor in (query, key, value)]
    mixed = [F.scaled_dot_product_attention(*part, is_causal=True, scale=scale) for part in zip(*parts, strict=True)]
    return torch.cat(mixed, dim=1).transpose(0, 1)
