"""Packages a snapshot of 2023 as a hub repository that today's engines read right."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import DownloadError, OptionError
from modelscope_polylm.packaging.files import CHECKSUMS, has_prompt_format, small_files
from modelscope_polylm.packaging.model_card import model_card
from modelscope_polylm.packaging.safetensors_writer import (
    INDEX,
    ITEM_SIZES,
    Shard,
    WeightSource,
    index_json,
    parse_size,
    plan_shards,
    write_shard,
)
from modelscope_polylm.packaging.staging import UnfinishedPackage, check_place
from modelscope_polylm.packaging.tokenizer.convert import write_tokenizer
from modelscope_polylm.packaging.tokenizer.corpus import read_data
from modelscope_polylm.packaging.tokenizer.parity import Proof, proof_summary
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.tokenizer import FILE_NAME as TOKENIZER_MODEL

logger = logging.getLogger(__name__)


# Room for everything but the weights.
SMALL_FILES_BYTES = 100 << 20
Progress = Callable[[int, int], None]


def package_snapshot(
    source: str | Path,
    out: str | Path,
    dtype: str | None = None,
    release: str | None = None,
    max_shard_size: str | int = "5GB",
    force: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> PackageReport:
    """Write a folder that is a well-formed ModelScope model repository.

    Weights are read and written a few rows at a time. Everything goes to `OUT.partial`, which becomes `out` at the end;
    a run that was interrupted is continued by the next one with the same arguments. Code beside the source is neither
    run nor copied.

    Args:
        source: a folder with a PolyLM snapshot in any of its layouts.
        out: the folder to write.
        dtype: 'bfloat16', 'float32' or 'float16'; that of the source if None.
        release: a name in `releases.RELEASES`; what the source says if None.
        max_shard_size: most bytes of one weight file, such as '5GB'.
        force: replace a model that is in `out`.
        strict: fail too where tokenizer.json differs from SentencePiece on text that is not natural language.
        progress: called with the bytes of weights that are written and their total.

    Raises:
        SnapshotError: the source is incomplete or corrupt, or its tokenizer cannot be converted exactly.
        OptionError: an unknown release, dtype or size; `out` holds something, overlaps with the source, or is being
            written by another run.
        DownloadError: the disk is full or failing.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    largest = parse_size(max_shard_size)
    if dtype is not None and dtype not in ITEM_SIZES:
        raise OptionError(f"dtype={dtype!r} is unknown: choose one of {', '.join(ITEM_SIZES)}.")
    snapshot = open_snapshot(source, release=release)
    if snapshot.release is None and not has_prompt_format(source):
        raise OptionError(f"{source} does not tell which release it is: pass release={' | '.join(RELEASES)}.")
    check_place(source, out, force)
    weights = WeightSource(snapshot.weight_files, snapshot.config)
    chosen = dtype or _stored_dtype(weights)
    try:
        with contextlib.closing(_Packaging(snapshot, weights, out, chosen, largest, strict, progress)) as packaging:
            check_place(source, out, force)  # once more: another run may have ended in the meantime
            return packaging.run()
    except DownloadError:
        raise
    except OSError as error:
        raise _explained(error, out) from error


class _Packaging:
    """One run: a method for each step."""

    def __init__(
        self,
        snapshot: Snapshot,
        weights: WeightSource,
        out: Path,
        dtype: str,
        largest: int,
        strict: bool,
        progress: Progress | None,
    ) -> None:
        self.snapshot, self.weights, self.dtype, self.strict = snapshot, weights, dtype, strict
        self.progress = progress or (lambda done, total: None)
        self.shards = plan_shards(weights.shapes.items(), dtype, largest)
        self.total, self.done = sum(shard.size for shard in self.shards), 0
        self.package = UnfinishedPackage(out, _settings(snapshot, dtype, largest))
        self.resumed = [shard.name for shard in self.shards if shard.name in self.package.finished]

    def run(self) -> PackageReport:
        """Write, check and publish the package."""
        self.check_space()
        # The tokenizer first: where it cannot be converted, nothing large has been written.
        proof = write_tokenizer(self.snapshot.tokenizer, self.package, self.strict)
        report = PackageReport(self.package.out, proof, warnings=self.warnings(), resumed=self.resumed)
        self.write_weights()
        self.write_small_files(report)
        report.files = dict(self.package.finished)
        report.size = sum((self.package.folder / name).stat().st_size for name in report.files)
        self.package.publish()
        return report

    def close(self) -> None:
        """Let other runs write there."""
        self.package.close()

    def warnings(self) -> list[str]:
        """What the owner should know; also logged."""
        lines = []
        if self.dtype == "float16":
            lines.append("float16: activations of PolyLM overflow in it and answers can be wrong; prefer bfloat16.")
        if self.weights.head_differs():
            lines.append("lm_head.weight of the source differs from the embedding and is dropped: PolyLM ties the two.")
        if self.snapshot.config.architecture != "GPT2LMHeadModel":
            lines.append(
                f"The source names the class {self.snapshot.config.architecture}; its tensors are GPT-2's, so the "
                "package names GPT2LMHeadModel. `polylm verify` shows whether it predicts text."
            )
        for line in lines:
            logger.warning("%s", line)
        return lines

    def check_space(self) -> None:
        """Raise DownloadError where the disk has no room for what is still to be written."""
        missing = sum(shard.size for shard in self.shards if shard.name not in self.package.finished)
        free = shutil.disk_usage(self.package.folder).free
        if missing + SMALL_FILES_BYTES > free:
            needed = f"{missing / 1e9:.2f} GB more, but {free / 1e9:.2f} GB are free"
            raise DownloadError(f"{self.package.out} needs {needed}: free space or name a folder on a larger disk.")

    def write_weights(self) -> None:
        """Write the shards that are missing; each is read again while the next one is written."""
        checks: list[Future[None]] = []
        with ThreadPoolExecutor(1) as checker:
            for shard in self.shards:
                if shard.name in self.package.finished:
                    self.advance(shard.size)
                    continue
                sha256 = write_shard(shard, self.weights, self.package.folder, self.advance)
                if checks:
                    checks[-1].result()
                checks.append(checker.submit(self.finish, shard, sha256))
            for check in checks:
                check.result()

    def finish(self, shard: Shard, sha256: str) -> None:
        """Note a written shard, once it reads as it was written."""
        self.package.finish(shard.name, sha256)
        self.package.check(shard.name)

    def write_small_files(self, report: PackageReport) -> None:
        """Write everything that people and engines read first."""
        from modelscope_polylm import __version__

        if len(self.shards) > 1:
            self.package.write(INDEX, index_json(self.shards))
        self.package.copy(self.snapshot.folder / TOKENIZER_MODEL, TOKENIZER_MODEL)
        for name, text in small_files(self.snapshot, self.dtype, __version__).items():
            self.package.write(name, text)
        self.package.write("LICENSE", read_data("apache-2.0.txt"))
        self.package.write("README.md", model_card(self.snapshot, report, self.dtype))
        sums = sorted((name, sha256) for name, sha256 in self.package.finished.items() if name != CHECKSUMS)
        self.package.write(CHECKSUMS, "".join(f"{sha256}  {name}\n" for name, sha256 in sums))

    def advance(self, size: int) -> None:
        """Tell how much is written."""
        self.done = min(self.total, self.done + size)
        self.progress(self.done, self.total)


def _settings(snapshot: Snapshot, dtype: str, largest: int) -> dict[str, Any]:
    """What the weight files depend on: a run may continue another only where all of it is the same."""
    sources = [file.path for file in snapshot.weight_files.files]
    stats = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sources}
    return {"source": str(snapshot.folder.resolve()), "weights": stats, "dtype": dtype, "max_shard_size": largest}


def _stored_dtype(weights: WeightSource) -> str:
    if len(weights.dtypes) > 1 or not weights.dtypes <= set(ITEM_SIZES):
        raise OptionError(f"The weights are stored as {', '.join(sorted(weights.dtypes))}: pass dtype='bfloat16'.")
    return next(iter(weights.dtypes))


def _explained(error: OSError, out: Path) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free space and run the same command again; it continues where it stopped"
        return DownloadError(f"The disk is full while {out} is written ({error}): {advice}.")
    return DownloadError(f"{out} cannot be written: {error}.")


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
