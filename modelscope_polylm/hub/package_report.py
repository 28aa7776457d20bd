"""What packaging a snapshot did, for people and for the model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from modelscope_polylm.hub.tokenizer_proof import Proof


@dataclass
class PackageReport:
    """The outcome of `package_snapshot`.

    Attributes:
        folder: the package.
        files: sha256 of its files, by name.
        size: bytes of all files.
        proof: the comparison of tokenizer.json with SentencePiece.
        warnings: what the owner of the package should know, a line each.
        resumed: files that an earlier, interrupted run had finished.
    """

    folder: Path
    proof: Proof
    files: dict[str, str] = field(default_factory=dict)
    size: int = 0
    warnings: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.folder}: {len(self.files)} files, {self.size / 1e9:.2f} GB, sha256 verified."]
        if self.resumed:
            lines.append(f"Taken over from an interrupted run: {', '.join(self.resumed)}.")
        lines.append(proof_summary(self.proof))
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


def proof_summary(proof: Proof) -> str:
    """One sentence on how tokenizer.json compares with SentencePiece."""
    start = "tokenizer.json gives SentencePiece's ids and text for "
    if not proof.differences:
        return start + f"all of {proof.total:,} strings."
    rounding = len(proof.differences) - len(proof.faults())
    parts = [f"{len(proof.faults())} differ"] if proof.faults() else []
    if rounding:
        parts.append(f"{rounding} are cut at other places with the same probability but for rounding")
    return (
        start
        + f"{proof.total - len({d.text for d in proof.differences}):,} of {proof.total:,} strings; {', '.join(parts)}."
    )
