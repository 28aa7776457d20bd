"""Hub repositories that carry the plugin: `allow_remote` with a one-line wrapper, with and without trust."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.local_hub import LocalHub

ROOT = Path(__file__).parents[2]
TRUSTED, UNKNOWN = "damo/nlp_polylm_assistant_13b_text_generation", "somebody/polylm"
RUN = """
import json, sys
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

def run(options):
    assert "modelscope_polylm" not in sys.modules
    try:
        pipe = pipeline(Tasks.text_generation, model=sys.argv[1], device="cpu", **options)
        return [type(pipe).__module__, pipe("Paris", max_new_tokens=2)["text"][:5]]
    except RuntimeError as error:
        return ["refused", str(error)]

print(json.dumps([run(options) for options in json.loads(sys.argv[2])]))
"""
WORKS = ["modelscope_polylm.plugin.pipelines", "Paris"]


@pytest.fixture
def wrapper_repository(random_snapshot: Path, tmp_path: Path) -> Path:
    """A snapshot as it goes to the hub: this project's configuration.json, and a wrapper that imports the package."""
    folder = shutil.copytree(random_snapshot, tmp_path / "repository")
    configuration = json.loads((ROOT / "configuration.json").read_text(encoding="utf-8"))
    (folder / "configuration.json").write_text(json.dumps({**configuration, "allow_remote": True}))
    (folder / "ms_wrapper.py").write_text("import modelscope_polylm\n")
    return folder


def test_trust_is_needed(hub: LocalHub, wrapper_repository: Path, run_script: Callable[..., Any]) -> None:
    hub.publish(wrapper_repository, UNKNOWN)
    refused, trusted = run_script(RUN, UNKNOWN, json.dumps([{}, {"trust_remote_code": True}]))
    assert refused[0] == "refused"
    assert "trust_remote_code=True" in refused[1]
    assert trusted == WORKS


@pytest.mark.slow
def test_the_publisher_is_trusted(hub: LocalHub, wrapper_repository: Path, run_script: Callable[..., Any]) -> None:
    hub.publish(wrapper_repository, TRUSTED, "v1.0.0")
    assert run_script(RUN, TRUSTED, json.dumps([{"model_revision": "v1.0.0"}])) == [WORKS]


def test_the_repositorys_configuration_names_our_classes() -> None:
    configuration = json.loads((ROOT / "configuration.json").read_text(encoding="utf-8"))
    assert configuration["framework"] == "pytorch"
    assert configuration["task"] == "text-generation"
    assert configuration["model"]["type"] == "polylm"
    assert configuration["pipeline"]["type"] == "polylm-text-generation"
