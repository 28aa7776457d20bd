"""All figures of a run, as an object and as a JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from modelscope_polylm.app.bench.measure import Measurement
from modelscope_polylm.errors import InputError


@dataclasses.dataclass
class Report:
    """What was measured, where.

    Attributes:
        shape, dtype: the network's published shape or the model's name, and the precision of its weights.
        device, torch: the device's name and torch's version.
        limit_ms: the time in which the device reads all weights once; None if that is not known.
        results: the measurements, in their order.
    """

    shape: str
    dtype: str
    device: str
    torch: str
    limit_ms: float | None
    results: list[Measurement] = dataclasses.field(default_factory=list)

    def json(self) -> str:
        """All figures as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def read(cls, file: Path) -> Report:
        """A report that was written before. Raises InputError if the file is none."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{**fields, "results": [Measurement(**result) for result in fields["results"]]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} holds no figures of this benchmark ({type(error).__name__}: {error}): "
                "name a file that `polylm bench --out` wrote."
            ) from error


def read_reports(files: Sequence[Path]) -> Report:
    """Reports of runs of one shape on one kind of device, as one. Raises InputError if they differ."""
    first, *others = map(Report.read, files)
    for file, other in zip(files[1:], others, strict=True):
        for name in ("shape", "dtype", "device"):
            if getattr(other, name) != getattr(first, name):
                raise InputError(
                    f"{file} was measured with {name} {getattr(other, name)!r}, and {files[0]} with "
                    f"{getattr(first, name)!r}: draw them apart."
                )
        first.results += other.results
    return first
