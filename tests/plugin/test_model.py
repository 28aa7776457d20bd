"""The ModelScope model: loading, generate(), and what ModelScope does with a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope.models import Model

from modelscope_polylm import PolyLMForChat, PolyLMForTextGeneration
from modelscope_polylm.errors import DeviceError, InputError, OptionError, SnapshotError
from tests.snapshots import random_model

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def reference() -> Any:
    return random_model(seed=0)


@pytest.fixture(scope="module")
def ids(model: PolyLMForTextGeneration) -> torch.Tensor:
    return torch.tensor([model.generator.snapshot.tokenizer.encode("Beijing is the capital")])


def test_generate_is_that_of_transformers(model: PolyLMForTextGeneration, reference: Any, ids: torch.Tensor) -> None:
    ours = model.generate(ids, **GREEDY)
    expected = reference.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, eos_token_id=2, pad_token_id=2)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_continue_as_if_alone(model: PolyLMForTextGeneration, ids: torch.Tensor, side: str) -> None:
    length = ids.shape[1]
    short = ids[:, : length - 3]
    padding = torch.zeros(1, 3, dtype=torch.int64)
    row = torch.cat([padding, short] if side == "left" else [short, padding], dim=1)
    mask = torch.cat([torch.ones_like(ids), (row != 0).long()])
    together = model.generate(torch.cat([ids, row]), mask, **GREEDY)
    assert torch.equal(together[:, :length], torch.cat([ids, row]))
    assert torch.equal(together[0, length:], model.generate(ids, **GREEDY)[0, length:])
    assert torch.equal(together[1, length:], model.generate(short, **GREEDY)[0, length - 3 :])


def test_ended_rows_are_padded_behind_their_end_token(model: PolyLMForTextGeneration, ids: torch.Tensor) -> None:
    free = model.generate(ids, **GREEDY)[0, ids.shape[1] :].tolist()
    other = ids[:, :2]
    end = free[1]
    both = torch.cat([ids, torch.cat([other, torch.zeros_like(ids[:, 2:])], dim=1)])
    mask = torch.tensor([[1] * ids.shape[1], [1, 1] + [0] * (ids.shape[1] - 2)])
    rows = model.generate(both, mask, **{**GREEDY, "eos_token_id": end, "pad_token_id": 5})
    new = rows[0, ids.shape[1] :].tolist()
    stop = new.index(end)
    assert new[: stop + 1] == free[: free.index(end) + 1]
    assert set(new[stop + 1 :]) <= {5}


def test_several_sequences(model: PolyLMForTextGeneration, ids: torch.Tensor) -> None:
    rows = model.generate(torch.cat([ids, ids]), num_beams=3, num_return_sequences=2, max_new_tokens=4, do_sample=False)
    assert rows.shape[0] == 4
    assert torch.equal(rows[:2], rows[2:])
    assert torch.equal(rows[:, : ids.shape[1]], ids.expand(4, -1))


def test_calling_the_model(model: PolyLMForTextGeneration, ids: torch.Tensor) -> None:
    sequences = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **GREEDY)["sequences"]
    assert torch.equal(sequences, model.generate(ids, **GREEDY))


@pytest.mark.parametrize(
    ("input_ids", "mask"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), None),
        (torch.zeros(3, dtype=torch.int64), None),
        (torch.zeros(1, 3), None),
        ([[1, 2]], None),
        (torch.full((1, 3), 10_000), None),
        (torch.ones(1, 300, dtype=torch.int64), None),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(1, 3)),
        (torch.ones(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 1], [0, 0, 0]])),
    ],
)
def test_bad_token_ids(model: PolyLMForTextGeneration, input_ids: Any, mask: Any) -> None:
    with pytest.raises(InputError):
        model.generate(input_ids, mask, **GREEDY)


def test_from_pretrained(random_snapshot: Path) -> None:
    model = Model.from_pretrained(str(random_snapshot), device="cpu", torch_dtype="bfloat16")
    assert type(model) is PolyLMForTextGeneration
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert model.model_dir == str(random_snapshot)
    chat = Model.from_pretrained(str(random_snapshot), task="chat", device="gpu", device_map=None)
    assert type(chat) is PolyLMForChat


def test_settings_of_configuration_json_are_no_options(random_snapshot: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(random_snapshot, tmp_path / "snapshot")
    file = folder / "configuration.json"
    configuration = json.loads(file.read_text())
    configuration["model"] = {"type": "polylm", "language": "multilingual"}
    file.write_text(json.dumps(configuration))
    assert Model.from_pretrained(str(folder), device="cpu").generator.snapshot.config.layers == 2


def test_the_model_is_not_moved(model: PolyLMForTextGeneration) -> None:
    assert model.to("meta") is model
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"torch_dtpye": "float32"}, OptionError, "did you mean torch_dtype"),
        ({"promptformat": "base"}, OptionError, "did you mean prompt_format"),
        ({"max_new_tokens": 5}, OptionError, "generation option: give it to the call"),
        ({"nonsense": 1}, OptionError, "nonsense"),
        ({"device_map": "auto"}, OptionError, "load the model with backend='transformers'"),
        ({"tensor_parallel_size": 2}, OptionError, "load the model with backend='vllm'"),
        ({"backend": "nativ"}, OptionError, "backend='nativ'"),
        ({"prompt_format": "alpaca"}, OptionError, "alpaca"),
        ({"release": "14b"}, OptionError, "14b"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, OptionError, "two names of one thing"),
        ({"torch_dtype": "int8"}, OptionError, "int8"),
        ({"device": "cuda:99"}, DeviceError, "does not exist"),
        ({"device": "tpu"}, DeviceError, "Unknown device"),
    ],
)
def test_bad_options(random_snapshot: Path, options: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        PolyLMForTextGeneration(random_snapshot, **{"device": "cpu", **options})


def test_modelscope_passes_our_errors_on(random_snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="did you mean torch_dtype"):
        Model.from_pretrained(str(random_snapshot), torch_dtpye="float32")
    shutil.copy(random_snapshot / "configuration.json", tmp_path)
    with pytest.raises(SnapshotError, match=r"no config\.json"):
        Model.from_pretrained(str(tmp_path), device="cpu")
