"""Checks of a snapshot's tokenizer, and of the tokenizer.json beside it."""

from __future__ import annotations

from collections.abc import Iterator

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.hub.package_files import TOKENIZER_JSON
from modelscope_polylm.hub.package_report import proof_summary
from modelscope_polylm.hub.tokenizer_proof import load_converted, prove
from modelscope_polylm.hub.tokenizer_settings import TokenizerSettings, read_settings
from modelscope_polylm.hub.verify_report import Row
from modelscope_polylm.snapshot import Snapshot


def check_tokenizer(snapshot: Snapshot, package: str) -> Iterator[Row]:
    """The facts that only tokenizer.model tells, and whether tokenizer.json agrees with it."""
    yield Row("tokenizer.model", "ok", _facts(read_settings(snapshot.tokenizer)))
    file = snapshot.folder / TOKENIZER_JSON
    if not file.is_file():
        meaning = "is missing: engines that convert tokenizer.model themselves get other ids on most texts."
        yield Row(TOKENIZER_JSON, "fault", f"The file {meaning}", package)
        return
    try:
        proof = prove(snapshot.tokenizer, load_converted(file.read_text(encoding="utf-8")))
    except (SnapshotError, ValueError) as error:
        yield Row(TOKENIZER_JSON, "fault", str(error), package)
        return
    faults = proof.faults()
    example = f" For example {faults[0]}" if faults else ""
    repair = package if faults else None
    yield Row(TOKENIZER_JSON, "fault" if faults else "ok", proof_summary(proof) + example, repair)


def _facts(settings: TokenizerSettings) -> str:
    parts = [
        settings.model_type,
        f"{len(settings.pieces):,} pieces",
        f"normalizer {settings.normalizer or 'without a name'}",
        "byte fallback" if settings.byte_fallback else "no byte fallback",
        "a space before the text" if settings.add_dummy_prefix else "no space before the text",
        "extra spaces removed" if settings.remove_extra_whitespaces else "all spaces kept",
    ]
    return ", ".join(parts) + "."
