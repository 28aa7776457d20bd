"""Checks of a snapshot's files: hashes, weights, settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelscope_polylm.hub.package_files import CHECKSUMS
from modelscope_polylm.hub.shard_writer import file_sha256
from modelscope_polylm.hub.verify_report import Row
from modelscope_polylm.snapshot import Snapshot


def check_hashes(folder: Path, download: str) -> Iterator[Row]:
    """Compare the files with the folder's own list of checksums."""
    sums = folder / CHECKSUMS
    if not sums.is_file():
        yield Row("hashes", "note", f"The folder has no {CHECKSUMS} to compare with, as only packages have it.")
        return
    pairs = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines() if line.strip()]
    missing = [name for _, name in pairs if not (folder / name).is_file()]
    changed = [name for sha256, name in pairs if name not in missing and file_sha256(folder / name) != sha256]
    if missing:
        yield Row("hashes", "fault", f"{', '.join(missing)} missing: the copy is incomplete.", download)
    if changed:
        meaning = f"{', '.join(changed)} differ from {CHECKSUMS}: damaged, or changed since."
        yield Row("hashes", "fault", meaning, download)
    if not missing and not changed:
        yield Row("hashes", "ok", f"{len(pairs)} files are as {CHECKSUMS} says.")


def check_weights(snapshot: Snapshot, package: str) -> Iterator[Row]:
    """What the weight files hold, and what they hold too much."""
    from modelscope_polylm.network.weights import HEAD, MASK, PREFIX

    files = snapshot.weight_files.files
    headers = {name.removeprefix(PREFIX): header for file in files for name, header in file.headers.items()}
    config, dtypes = snapshot.config, sorted({header.dtype for header in headers.values()} - {"bool", "uint8"})
    size = f"{config.layers} layers, {config.heads} heads, width {config.width}, {config.positions} positions"
    yield Row("tensors", "ok", f"{config.parameters:,} parameters in {len(files)} files, {', '.join(dtypes)}; {size}.")
    extra = [name for name in headers if MASK.fullmatch(name) or name == HEAD]
    if extra:
        kept = "causal masks or a second copy of the embedding, which are read by nobody"
        yield Row("extra tensors", "note", f"{len(extra)} tensors hold {kept}.", package)
    if any(file.path.suffix == ".bin" for file in files):
        meaning = "Weights are pickles: slow to load, and many engines refuse them. This package reads them safely."
        yield Row("weight format", "fault", meaning, package)
    if "float16" in dtypes:
        yield Row("weight type", "note", "Weights are float16; PolyLM overflows if it also computes in it.")


def check_settings(snapshot: Snapshot, package: str) -> Iterator[Row]:
    """Whether the JSON files make other engines do what this package does."""
    folder, end = snapshot.folder, snapshot.tokenizer.eos_token_id
    config = _read(folder / "config.json")
    generation = _read(folder / "generation_config.json")
    tokenizer = _read(folder / "tokenizer_config.json")
    wrong = f"end token is {config.get('eos_token_id')}, but </s> is {end}: answers never end in other engines."
    yield _judged("config.json", config.get("eos_token_id") == end, f"The end token is {end}.", wrong, package)
    if snapshot.config.architecture != "GPT2LMHeadModel":
        meaning = f"names the class {snapshot.config.architecture}, which needs code from the repository to load."
        yield Row("config.json", "fault", meaning, package)
    right, wrong = f"The end token is {end}.", "is missing or names another end token: engines use their own defaults."
    is_right = _as_list(generation.get("eos_token_id")) == [end]
    yield _judged("generation_config.json", is_right, right, wrong, package)
    right, wrong = "There is a chat template.", "has no chat template: chat servers refuse messages or guess a format."
    has_template = bool(tokenizer.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    yield _judged("chat template", has_template, right, wrong, package)
    if str(tokenizer.get("tokenizer_class")).startswith("Llama"):
        meaning = "names LlamaTokenizer, which today's transformers lets change ids: text is read wrongly, silently."
        yield Row("tokenizer_config.json", "fault", meaning, package)


def _judged(check: str, is_right: bool, right: str, wrong: str, repair: str) -> Row:
    return Row(check, "ok", right) if is_right else Row(check, "fault", wrong[0].upper() + wrong[1:], repair)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
