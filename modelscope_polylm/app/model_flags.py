"""The flags that say which model, and where it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from modelscope_polylm.releases import RELEASES


def _starting_with(names: tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Short names for the shell's completion."""
    return _starting_with(tuple(RELEASES), incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Devices for the shell's completion."""
    return _starting_with(("cpu", "gpu", "cuda:0"), incomplete)


def complete_dtype(incomplete: str) -> list[str]:
    """Precisions for the shell's completion."""
    return _starting_with(("bfloat16", "float32", "float16"), incomplete)


def complete_backend(incomplete: str) -> list[str]:
    """Backends for the shell's completion."""
    return _starting_with(("native", "transformers", "vllm"), incomplete)


ModelFlag = Annotated[
    str,
    typer.Option(
        "--model", help="A folder, a hub id, or a release such as tiny or assistant-13b.", autocompletion=complete_model
    ),
]
RevisionFlag = Annotated[str | None, typer.Option("--revision", help="Tag or branch on the hub.")]
DeviceFlag = Annotated[
    str | None,
    typer.Option("--device", help="cpu, gpu, cuda:1, ...; a GPU if there is one.", autocompletion=complete_device),
]
DtypeFlag = Annotated[
    str | None,
    typer.Option("--dtype", help="bfloat16 (default on a GPU), float32 or float16.", autocompletion=complete_dtype),
]
BackendFlag = Annotated[
    str, typer.Option("--backend", help="native, transformers or vllm.", autocompletion=complete_backend)
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
