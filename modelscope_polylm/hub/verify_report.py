"""What `verify_snapshot` found, as a table for people."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        check: what was looked at.
        status: 'fault' where some engine goes wrong with it, 'note' where nothing does.
        meaning: what was found and what follows.
        repair: a command that repairs it, or None.
    """

    check: str
    status: Status
    meaning: str
    repair: str | None = None


@dataclass
class VerifyReport:
    """All findings about a snapshot."""

    folder: Path
    rows: list[Row] = field(default_factory=list)

    @property
    def faults(self) -> list[Row]:
        """The rows that are faults."""
        return [row for row in self.rows if row.status == "fault"]

    @property
    def exit_code(self) -> int:
        """0 without faults, else 1."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        return render(self)


def render(report: VerifyReport, width: int = 100) -> str:
    """The report as a plain table, lines wrapped to `width` columns, with each repair once at the end."""
    names = max((len(row.check) for row in report.rows), default=0)
    lines = [str(report.folder)]
    for row in report.rows:
        head = f"{row.status:5}  {row.check:{names}}  "
        wrapped = textwrap.wrap(row.meaning, max(30, width - len(head))) or [""]
        lines += [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
    count = len(report.faults)
    lines.append(f"{count or 'no'} fault{'s' * (count != 1)}")
    repairs = dict.fromkeys(row.repair for row in report.rows if row.repair)
    if repairs:
        lines += ["To repair:", *(f"    {repair}" for repair in repairs)]
    return "\n".join(lines)
