"""The tasks' files in a temporary folder, and commands run in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.network.kernels.dispatch import settings
from tests.commands import own_environment, polylm
from tests.evaluation.published import write_all
from tests.packaged import package


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some examples of each task. Do not write to it."""
    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def generator(package: Path) -> TextGenerator:
    """The packaged tiny model in fp32."""
    return TextGenerator.load(package, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def stock_model(package: Path) -> Any:
    """The harness's own model of transformers on the same package; its context counts one token less than ours."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=str(package), device="cpu", dtype="float32", batch_size=4, max_length=511, prefix_token_id=2)


@pytest.fixture(autouse=True)
def own_kernel_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command makes a process deterministic; here it is taken back."""
    monkeypatch.setattr(settings, "deterministic", settings.deterministic)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The harness logs what it does; a test's output should be the test's."""
    logger, before = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)
