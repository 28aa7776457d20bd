"""How vLLM's server is called; tests/interop/inside_vllm/test_server.py runs it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from modelscope_polylm.errors import DependencyError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging.cache import packages_folder
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.serve.command import model_names
from modelscope_polylm.serve.vllm_server import run_vllm_server, server_defaults, vllm_command
from modelscope_polylm.snapshot import open_snapshot


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_nothing_is_written() -> None:
    with pytest.raises(DependencyError, match="needs vLLM, which is not installed"):
        run_vllm_server("tiny", host="127.0.0.1", port=8000, api_key=None)
    assert not packages_folder().exists()


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [("natural en", "Beijing is the capital."), ("code", "x = 1\n")]
    monkeypatch.setattr("modelscope_polylm.packaging.tokenizer.parity.corpus_strings", lambda: iter(texts))
    command = vllm_command(TINY_FOLDER, "tiny", "127.0.0.1", 8001, None, ["--max-num-seqs", "4"])
    package = Path(command[command.index("--model") + 1])
    assert package.parent == packages_folder() and (package / "tokenizer.json").is_file()
    assert command[command.index("--generation-config") + 1] == str(package)
    assert command[command.index("--port") + 1] == "8001"
    names = model_names("tiny", None)
    first = command.index("--served-model-name") + 1
    assert command[first:] == [*names, "--max-num-seqs", "4"]
    defaults = json.loads(command[command.index("--override-generation-config") + 1])
    assert defaults == {"temperature": 0.0, "max_new_tokens": None}


@pytest.mark.parametrize(
    ("release", "wanted"),
    [
        ("assistant-13b", {"temperature": 0.0, "max_new_tokens": None}),
        (
            "multialpaca-13b",
            {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.02, "max_new_tokens": None},
        ),
    ],
)
def test_defaults_are_those_of_the_release(release: str, wanted: dict[str, object]) -> None:
    snapshot = open_snapshot(TINY_FOLDER)
    assert server_defaults(dataclasses.replace(snapshot, generation=dict(RELEASES[release].generation))) == wanted
