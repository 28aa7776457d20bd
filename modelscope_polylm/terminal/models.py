"""From the name of a model to the loaded model, telling what takes time: a download, reading the weights."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.files import cache_root
from modelscope_polylm.releases import named_release
from modelscope_polylm.terminal.output import working, write_error

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator


def find_model(model: str, revision: str | None = None) -> Path:
    """The model's folder. What is not in the cache is downloaded, after saying how much that is.

    Raises:
        SnapshotError, DownloadError: as `hub.resolve.resolve`.
    """
    from modelscope_polylm.hub.resolve import resolve

    return resolve(model, revision, announce=_announce_download)


def load_model(
    model: str,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str = "native",
    release: str | None = None,
    adapter: Path | None = None,
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
    deterministic: bool | None = None,
) -> TextGenerator:
    """The model on its device, ready to generate.

    Args:
        model, revision: what the user named.
        device, dtype, backend: as in `TextGenerator.load`.
        release: which release it is; what the name of the model says if None.
        adapter: the folder of a low-rank adapter.
        quantization, kv_cache_dtype, deterministic: the native backend's; None where nothing was given.
    """
    folder = find_model(model, revision)
    given: dict[str, Any] = {"quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
    given["deterministic"] = deterministic
    with working(f"Loading {model}"), without_collection():
        from modelscope_polylm.backends.placement import limit_threads
        from modelscope_polylm.generator import TextGenerator

        generator = TextGenerator.load(
            folder,
            device=device,
            dtype=dtype,
            backend=backend,
            release=release_name(model, release),
            adapter=adapter,
            **{name: value for name, value in given.items() if value is not None},
        )
    limit_threads(generator.snapshot.config, generator.backend.device)
    return generator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Load what stays to the process's end: the garbage collector passes over it neither meanwhile nor later.

    Meanwhile its passes would take a tenth of the time of imports, and find nothing; later each would stop all threads
    for a tenth of a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # at the end all goes as usual, or nanobind counts what is left as leaks
        atexit.register(gc.unfreeze)


def release_name(model: str, release: str | None = None) -> str | None:
    """The short name of a model's release: the one given, or what MODEL stands for unless it is a folder here."""
    named = None if (Path(model).expanduser() / "config.json").is_file() else named_release(model)
    return release or (named.name if named else None)


def _announce_download(name: str, size: int) -> None:
    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # its errors also come as exceptions
    write_error(f"{name} is not complete in {cache_root()}: downloading up to {readable_bytes(size)}.")


def readable_bytes(count: float) -> str:
    """1,234,567,890 -> '1.2 GB'; decimal units, as disks and downloads are measured."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def model_names(model: str, name: str | None) -> tuple[str, ...]:
    """What requests may call a model: the given name, or MODEL and the other names of its release; never a path."""
    if name is not None:
        return (name,)
    release = named_release(model)
    if release is not None:
        return tuple(dict.fromkeys((model, release.name, *release.hub_ids)))
    return (Path(model).resolve().name,) if Path(model).expanduser().is_dir() else (model,)
