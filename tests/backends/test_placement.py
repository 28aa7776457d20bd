"""Device names and precisions."""

from __future__ import annotations

import logging

import pytest
import torch

from modelscope_polylm.backends.placement import check_precision, choose_device, choose_dtype, limit_threads
from modelscope_polylm.errors import DeviceError, OptionError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.snapshot import open_snapshot


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("gpu", "cuda:0"),
        ("cuda", "cuda:0"),
        ("GPU:1", "cuda:1"),
        ("cuda:1", "cuda:1"),
        ("cpu", "cpu"),
        (None, "cuda:0"),
        (torch.device("cuda", 1), "cuda:1"),
        (0, "cuda:0"),
        ("1", "cuda:1"),
    ],
)
def test_names_with_gpus(two_gpus: None, name: str | None, device: str) -> None:
    assert choose_device(name) == torch.device(device)


@pytest.mark.parametrize(("name", "warns"), [("gpu", False), ("cuda", True), ("cpu", False), (None, False)])
def test_names_without_a_gpu(no_gpu: None, caplog: pytest.LogCaptureFixture, name: str | None, warns: bool) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_device(name) == torch.device("cpu")
    assert bool(caplog.records) == warns


@pytest.mark.parametrize("name", ["cuda:0", "gpu:0", "cuda:7", "0"])
def test_a_numbered_gpu_must_exist(no_gpu: None, name: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' does not exist: this host has 0 GPUs"):
        choose_device(name)


def test_a_number_beyond_the_last_gpu(two_gpus: None) -> None:
    with pytest.raises(DeviceError, match="this host has 2 GPUs"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["xpu", "cuda:", "cpus", "cuda:-1", -1, True])
def test_unknown_devices(two_gpus: None, name: object) -> None:
    with pytest.raises(DeviceError, match="Unknown device"):
        choose_device(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "device", "chosen"),
    [
        (None, "cuda", torch.bfloat16),
        (None, "cpu", torch.float32),
        ("auto", "cpu", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        (torch.float32, "cuda", torch.float32),
        ("torch.bfloat16", "cuda", torch.bfloat16),
    ],
)
def test_precisions(dtype: str | None, device: str, chosen: torch.dtype) -> None:
    assert choose_dtype(dtype, torch.device(device)) is chosen


def test_float16_warns() -> None:
    with pytest.warns(UserWarning, match="overflows float16"):
        assert choose_dtype("float16", torch.device("cpu")) is torch.float16


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_bfloat16_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda", 0)
    check_precision(torch.float32, gpu)
    check_precision(torch.bfloat16, torch.device("cpu"))
    if capability >= (8, 0):
        check_precision(torch.bfloat16, gpu)
        return
    with pytest.raises(DeviceError, match=r"Tesla T4 \(compute capability 7.5\) .* torch_dtype='float32'"):
        check_precision(torch.bfloat16, gpu)


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "float64", 16])
def test_unknown_precisions(dtype: object) -> None:
    with pytest.raises(OptionError, match="torch_dtype"):
        choose_dtype(dtype, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("environment", "expected"), [({}, 1), ({"OMP_NUM_THREADS": "3"}, 3)])
def test_small_models_run_in_one_thread(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int
) -> None:
    config = open_snapshot(TINY_FOLDER).config
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(3)
    limit_threads(config, torch.device("cpu"))
    assert torch.get_num_threads() == expected
    torch.set_num_threads(3)
    monkeypatch.setattr("modelscope_polylm.backends.placement.SMALL_MODEL", 1000)
    limit_threads(config, torch.device("cpu"))
    assert torch.get_num_threads() == 3
