"""Three ways to run a snapshot behind one interface; the native one is the default."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import OptionError, suggestion

if TYPE_CHECKING:
    import torch

    from modelscope_polylm.backends.base import Backend
    from modelscope_polylm.snapshot import Snapshot

BACKENDS = ("native", "transformers", "vllm")


def create_backend(
    name: str, snapshot: Snapshot, device: torch.device, dtype: torch.dtype, **backend_options: Any
) -> Backend:
    """Load a snapshot into the backend of that name.

    Args:
        name: one of BACKENDS.
        snapshot: an opened snapshot.
        device, dtype: where and how the weights are kept.
        backend_options: what the backend's constructor takes in addition.

    Raises:
        OptionError: an unknown backend or an option that it does not have.
    """
    backend = _backend_class(name)
    known = _own_options(backend)
    for option in backend_options:
        if option not in known and not _takes_any(backend):
            raise OptionError(f"Backend {name!r} has no option {option!r}: {_hint(name, option, known)}")
    created: Backend = backend(snapshot, device, dtype, **backend_options)
    return created


def _own_options(backend: type[Any]) -> list[str]:
    """The names of a backend's options, after snapshot, device and dtype."""
    return list(inspect.signature(backend).parameters)[3:]


def _hint(name: str, option: str, known: list[str]) -> str:
    owners = [name for name in BACKENDS if option in _own_options(_backend_class(name))]
    if option == "quantization" and name == "transformers":
        return (
            "transformers quantises with configurations and packages of its own. Load the model with backend='native' "
            "to quantise it here, or leave out quantization."
        )
    if owners:
        return f"load the model with {' or '.join(f'backend={name!r}' for name in owners)} to use it."
    return suggestion(option, known, "it has") if known else "it has none."


def _backend_class(name: str) -> Any:
    if name == "native":
        from modelscope_polylm.backends.native import NativeBackend

        return NativeBackend
    if name == "transformers":
        from modelscope_polylm.backends.transformers.backend import TransformersBackend

        return TransformersBackend
    if name == "vllm":
        from modelscope_polylm.backends.vllm.backend import VLLMBackend

        return VLLMBackend
    raise OptionError(f"backend={name!r} is not one of {', '.join(BACKENDS)}.")


def _takes_any(backend: type[Any]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(backend).parameters.values())
