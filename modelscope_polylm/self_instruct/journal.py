"""The journal of a run: what became of each prompt, so that a run can go on and tell what it dropped and why."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import InputError
from modelscope_polylm.files import lock, write_atomically
from modelscope_polylm.self_instruct.tasks import Dropped, Task

SEEDS = 0
"""The round in which seeds are translated; those that write tasks begin at 1."""


@dataclass(frozen=True)
class Entry:
    """What became of one prompt.

    Attributes:
        language: ISO 639-1 code.
        round, prompt: SEEDS and the number of the seed, or a round and the number of its prompt.
        kept: tasks that passed the filters.
        dropped: what did not, and why.
        emptied: kept tasks whose input stood in the instruction, and is now empty.
    """

    language: str
    round: int
    prompt: int
    kept: list[Task] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    emptied: int = 0

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Entry:
        """The entry of a line that `dataclasses.asdict` made."""
        kept = [Task(**task) for task in row["kept"]]
        return cls(**{**row, "kept": kept, "dropped": [Dropped(**dropped) for dropped in row["dropped"]]})


@dataclass
class Counts:
    """What became of the tasks of a language.

    Attributes:
        prompts: how many were answered, without translations of seeds.
        kept, dropped: tasks, and what could not be read as one, by reason.
        emptied: kept tasks whose input stood in the instruction.
        seeds, seeds_dropped: translations of seeds.
    """

    prompts: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    emptied: int = 0
    seeds: int = 0
    seeds_dropped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON."""
        reasons = {"dropped": dict(self.dropped.most_common()), "seeds_dropped": dict(self.seeds_dropped.most_common())}
        return {**vars(self), **reasons}


class Journal:
    """A file of JSON lines: first what the run depends on, then an entry for each prompt. It is locked while open.

    Args:
        path: the file; it is made if it does not exist.
        run: what the entries depend on.

    Raises:
        InputError: the file is of a run that depends on something else, or another process writes to it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path, self.entries = path, list[Entry]()
        self._file = path.open("a+b")
        try:
            lock(self._file.fileno(), self._refuse_second_run)
            self._read(dict(run))
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file, which lets another run go on with it."""
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Append an entry. It stays after the end of this process."""
        self.entries.append(entry)
        self._append(dataclasses.asdict(entry))

    def of(self, language: str, round: int) -> list[Entry]:
        """The entries of a round."""
        return [entry for entry in self.entries if entry.language == language and entry.round == round]

    def write_tasks(self, out: Path) -> None:
        """Write the kept tasks as JSON lines that `polylm data` and `polylm finetune` read."""
        rows = (
            {**dataclasses.asdict(task), "language": entry.language}
            for entry in self.entries
            if entry.round != SEEDS
            for task in entry.kept
        )
        write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def counts(self) -> dict[str, Counts]:
        """What became of the tasks, by language."""
        found: dict[str, Counts] = {}
        for entry in self.entries:
            counts = found.setdefault(entry.language, Counts())
            if entry.round == SEEDS:
                counts.seeds += len(entry.kept)
                counts.seeds_dropped.update(dropped.reason for dropped in entry.dropped)
                continue
            counts.prompts += 1
            counts.kept += len(entry.kept)
            counts.emptied += entry.emptied
            counts.dropped.update(dropped.reason for dropped in entry.dropped)
        return found

    def _read(self, run: dict[str, Any]) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        if lines.pop():  # a process was killed while it wrote
            self._file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._append(run)
            return
        try:
            rows = [json.loads(line) for line in lines]
            self.entries = [Entry.from_dict(row) for row in rows[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{self.path} is no journal of this command ({error}): give another --out.") from error
        self._compare(rows[0], run)

    def _compare(self, before: Any, run: dict[str, Any]) -> None:
        changed = [name for name in run if not isinstance(before, dict) or before.get(name) != run[name]]
        if changed:
            raise InputError(
                f"{self.path} is of a run with another {' and '.join(changed)}: give what it had, or another --out."
            )

    def _append(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _refuse_second_run(self) -> None:
        raise InputError(f"{self.path} is in use: another process runs with this --out.")
