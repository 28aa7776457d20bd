"""Packages a snapshot from 2023 as a hub repository that current engines read correctly."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import DownloadError, OptionError
from modelscope_polylm.packaging.files import CHECKSUMS, bundled_text, small_files
from modelscope_polylm.packaging.model_card import model_card
from modelscope_polylm.packaging.quantized_source import Quantization, QuantizedSource
from modelscope_polylm.packaging.safetensors_writer import (
    DTYPES,
    INDEX,
    Shard,
    TensorSource,
    WeightSource,
    index_json,
    parse_size,
    plan_shards,
    write_shard,
)
from modelscope_polylm.packaging.staging import StagingFolder, check_output_folder
from modelscope_polylm.packaging.tokenizer.convert import write_tokenizer
from modelscope_polylm.packaging.tokenizer.parity import ParityReport
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.tokenizer import FILE_NAME as TOKENIZER_MODEL

logger = logging.getLogger(__name__)

SMALL_FILES_BYTES = 100 << 20
"""Disk space for everything except the weights; most of it is left over."""
Progress = Callable[[int, int], None]
"""Takes the bytes that are done and their total."""


def package_snapshot(
    source: str | Path,
    out: str | Path,
    dtype: str | None = None,
    release: str | None = None,
    max_shard_size: str | int = "5GB",
    force: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
    adapter: str | Path | None = None,
    quantization: Quantization | None = None,
) -> PackageReport:
    """Write a folder that is a well-formed ModelScope model repository.

    Weights are read and written a few rows at a time. Everything goes to `OUT.partial`, which is renamed to `out` at
    the end; the next run with the same arguments continues one that was interrupted, unless it quantises. Code next to
    the source is neither run nor copied.

    Args:
        source: a folder with a PolyLM snapshot in any of its layouts.
        out: the folder to write.
        dtype: 'bfloat16', 'float32' or 'float16'; the source's if None, and 16 bits if quantised.
        release: a name in `releases.RELEASES`; what the source says if None.
        max_shard_size: most bytes of one weight file, such as '5GB'.
        force: replace a model that is in `out`.
        strict: also fail if tokenizer.json differs from SentencePiece on text that is not natural language.
        progress: called with the bytes of weights that are written and their total.
        adapter: peft's folder of a low-rank adapter, which is merged into the weights.
        quantization: puts the projections into fewer bits, in GPTQ's format.

    Raises:
        SnapshotError: the source is incomplete or damaged, its weights are not finite in the dtype, or its tokenizer
            cannot be converted exactly.
        OptionError: an unknown release, dtype or size; `out` holds something, overlaps with the source, or is being
            written by another run; a source that is quantised already.
        InputError: a calibration text that is empty.
        DownloadError: the disk is full or failing.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    max_bytes = parse_size(max_shard_size)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype={dtype!r} is unknown: choose one of {', '.join(DTYPES)}.")
    snapshot = open_snapshot(source, release=release, adapter=adapter)
    if snapshot.config.quantization is not None:
        raise OptionError(f"{source} is quantised already: package the model that it was made from.")
    if snapshot.prompt_format is None:
        raise OptionError(f"{source} does not tell which release it is: pass release={' | '.join(RELEASES)}.")
    check_output_folder(source, out, force)
    weights = WeightSource(snapshot.weight_files, snapshot.config, snapshot.adapter)
    chosen = _chosen_dtype(dtype, weights, quantization)
    plan = (chosen, max_bytes, strict, progress, quantization)
    try:
        with contextlib.closing(_Packaging(snapshot, weights, out, *plan)) as packaging:
            check_output_folder(source, out, force)  # again: another run may have ended in the meantime
            return packaging.run()
    except DownloadError:
        raise
    except OSError as error:
        raise _explained(error, out) from error


@dataclass
class PackageReport:
    """The outcome of `package_snapshot`.

    Attributes:
        folder: the package.
        files: sha256 of its files, by name.
        size: bytes of all files.
        parity: the comparison of tokenizer.json with SentencePiece.
        warnings: what the owner of the package should know, a line each.
        resumed: files that an earlier, interrupted run had finished.
    """

    folder: Path
    parity: ParityReport
    files: dict[str, str] = field(default_factory=dict)
    size: int = 0
    warnings: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.folder}: {len(self.files)} files, {self.size / 1e9:.2f} GB, sha256 verified."]
        if self.resumed:
            lines.append(f"Kept from an interrupted run: {', '.join(self.resumed)}.")
        return "\n".join([*lines, str(self.parity), *(f"Warning: {warning}" for warning in self.warnings)])


class _Packaging:
    """One run: a method for each step."""

    def __init__(
        self,
        snapshot: Snapshot,
        weights: WeightSource,
        out: Path,
        dtype: str,
        max_bytes: int,
        strict: bool,
        progress: Progress | None,
        quantization: Quantization | None,
    ) -> None:
        self.snapshot, self.dtype, self.strict, self.quantization = snapshot, dtype, strict, quantization
        self.weights: TensorSource = weights
        if quantization is not None:
            self.weights = QuantizedSource(weights, snapshot.config, snapshot.tokenizer, quantization)
        self.progress = progress or (lambda done, total: None)
        self.shards = plan_shards(self.weights.shapes.items(), dtype, max_bytes)
        self.total, self.done = sum(shard.size for shard in self.shards), 0
        self.staging = StagingFolder(out, _settings(snapshot, dtype, max_bytes, quantization))
        self.resumed = [shard.name for shard in self.shards if shard.name in self.staging.finished]

    def run(self) -> PackageReport:
        """Write, check and publish the package."""
        self.check_space()
        # The tokenizer first: if it cannot be converted, nothing large has been written.
        parity = write_tokenizer(self.snapshot.tokenizer, self.staging, self.strict)
        report = PackageReport(self.staging.out, parity, warnings=self.warnings(), resumed=self.resumed)
        self.write_weights()
        self.write_small_files(report)
        report.files = dict(self.staging.finished)
        report.size = sum((self.staging.folder / name).stat().st_size for name in report.files)
        self.staging.publish()
        return report

    def close(self) -> None:
        """Let other runs write there."""
        self.staging.close()

    def warnings(self) -> list[str]:
        """Log and return what the owner of the package should know, a line each."""
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
        if (adapter := self.snapshot.adapter) is not None:
            lines.append(f"An adapter of rank {adapter.rank} is merged into the weights: they are not the release's.")
        if isinstance(self.weights, QuantizedSource):
            lines.append(self.weights.description)
        for line in lines:
            logger.warning("%s", line)
        return lines

    def check_space(self) -> None:
        """Raise DownloadError if the disk has no room for what is still to be written."""
        missing = sum(shard.size for shard in self.shards if shard.name not in self.staging.finished)
        free = shutil.disk_usage(self.staging.folder).free
        if missing + SMALL_FILES_BYTES > free:
            parts = f"{missing / 1e9:.3f} GB for weights and {SMALL_FILES_BYTES / 1e9:.3f} GB for other files"
            raise DownloadError(
                f"{self.staging.out} needs {(missing + SMALL_FILES_BYTES) / 1e9:.3f} GB more ({parts}), but only "
                f"{free / 1e9:.3f} GB are free: free space or name a folder on a larger disk."
            )

    def write_weights(self) -> None:
        """Write the shards that are missing; each is read again while the next one is written."""
        checks: list[Future[None]] = []
        with ThreadPoolExecutor(1) as checker:
            for shard in self.shards:
                if shard.name in self.staging.finished:
                    self.advance(shard.size)
                    continue
                sha256 = write_shard(shard, self.weights, self.staging.folder, self.advance)
                if checks:
                    checks[-1].result()
                checks.append(checker.submit(self.finish, shard, sha256))
            for check in checks:
                check.result()

    def finish(self, shard: Shard, sha256: str) -> None:
        """Record a written shard, and read it again."""
        self.staging.finish(shard.name, sha256)
        self.staging.check(shard.name)

    def write_small_files(self, report: PackageReport) -> None:
        """Write everything except the weights and tokenizer.json."""
        from modelscope_polylm import __version__

        if len(self.shards) > 1:
            self.staging.write(INDEX, index_json(self.shards))
        self.staging.copy(self.snapshot.folder / TOKENIZER_MODEL, TOKENIZER_MODEL)
        for name, text in small_files(self.snapshot, self.dtype, __version__, self.quantization).items():
            self.staging.write(name, text)
        self.staging.write("LICENSE", bundled_text("apache-2.0.txt"))
        self.staging.write("README.md", model_card(self.snapshot, report, self.dtype, self.quantization))
        sums = sorted((name, sha256) for name, sha256 in self.staging.finished.items() if name != CHECKSUMS)
        self.staging.write(CHECKSUMS, "".join(f"{sha256}  {name}\n" for name, sha256 in sums))

    def advance(self, size: int) -> None:
        """Report that more bytes are written."""
        self.done = min(self.total, self.done + size)
        self.progress(self.done, self.total)


def _settings(snapshot: Snapshot, dtype: str, max_bytes: int, quantization: Quantization | None) -> dict[str, Any]:
    """What the weight files depend on: a run continues another one only if all of it is the same.

    A run that quantises never is: each layer needs what the quantised ones before it compute.
    """
    from modelscope_polylm import __version__

    sources = [file.path for file in snapshot.weight_files.files]
    stats = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sources}
    source = {"source": str(snapshot.folder.resolve()), "weights": stats}
    adapter = snapshot.adapter.digest() if snapshot.adapter else None
    run = None if quantization is None else uuid.uuid4().hex
    rest = {"dtype": dtype, "max_shard_size": max_bytes, "version": __version__, "quantizing_run": run}
    return {**source, "adapter": adapter, **rest}


def _chosen_dtype(dtype: str | None, weights: WeightSource, quantization: Quantization | None) -> str:
    if quantization is None:
        return dtype or _stored_dtype(weights)
    if dtype == "float32":
        raise OptionError("A quantised package keeps its other tensors in 16 bits: pass dtype='bfloat16', or none.")
    return dtype or ("float16" if weights.dtypes == {"float16"} else "bfloat16")


def _stored_dtype(weights: WeightSource) -> str:
    if len(weights.dtypes) > 1 or not weights.dtypes <= set(DTYPES):
        raise OptionError(f"The weights are stored as {', '.join(sorted(weights.dtypes))}: pass dtype='bfloat16'.")
    return next(iter(weights.dtypes))


def _explained(error: OSError, out: Path) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free space and run the same command again; it continues where it stopped"
        return DownloadError(f"The disk is full while {out} is written ({error}): {advice}.")
    return DownloadError(f"{out} cannot be written: {error}.")
