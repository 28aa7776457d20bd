"""What a run's answers depend on, kept beside the output, so that only the same run goes on behind its lines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import OptionError, PolyLMError

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import TextGenerator

Settings = dict[str, Any]
SMALL_FILES = ("config.json", "tokenizer.model")
WEIGHTS = (".safetensors", ".bin")


def settings_file(output: Path) -> Path:
    """The file beside the output that holds the settings of its run."""
    return output.with_name(f"{output.name}.run.json")


def model_settings(generator: TextGenerator, options: GenerationOptions) -> Settings:
    """What the answers depend on besides the input: the model, how it runs, all options in force."""
    values = dataclasses.asdict(options)
    settings = {"model": _model_mark(generator.snapshot.folder), "prompt_format": generator.snapshot.prompt_format.name}
    running = {"backend": generator.backend.name, "dtype": str(generator.backend.dtype).removeprefix("torch.")}
    plain: Settings = json.loads(json.dumps({**settings, **running, **values}, default=repr))
    return plain


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def check_or_write(output: Path, settings: Settings, begun: bool) -> None:
    """Keep the settings of a new run; make sure that a run that goes on has the same ones.

    Args:
        output: the run's output.
        settings: of this run.
        begun: whether the output has lines already.

    Raises:
        OptionError: the output is of another run; says what differs.
        PolyLMError: the settings cannot be written.
    """
    file = settings_file(output)
    if begun:
        before = _read(file, output)
        differing = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
        if differing:
            changes = "; ".join(_change(name, before, settings) for name in differing)
            raise OptionError(f"{output} belongs to another run ({changes}): {_ADVICE}")
        return
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise PolyLMError(f"{file} cannot be written: {error.strerror}.") from error


_ADVICE = "give the same input and options to go on with it, choose another output, or pass --overwrite to begin again."


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name in ("input", "model"):
        return f"the {name} is another one"
    return f"{name} was {before.get(name)!r}, now {now.get(name)!r}"


def _read(file: Path, output: Path) -> Settings:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise OptionError(f"{output} exists, but {file.name}, which says how it was made, does not: {_ADVICE}")
    return settings


def _model_mark(folder: Path) -> str:
    """Tells models apart without reading their weights: small files whole, of the weights names and sizes."""
    mark = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in SMALL_FILES:
            mark.update(path.read_bytes())
        elif path.suffix in WEIGHTS:
            mark.update(f"{path.name} {path.stat().st_size}\n".encode())
    return mark.hexdigest()


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
