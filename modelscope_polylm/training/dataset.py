"""The rows of a run: examples on disk, some held out, the others packed and put into an order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Dataset, Subset

from modelscope_polylm.errors import InputError
from modelscope_polylm.files import read_own_json, write_atomically
from modelscope_polylm.training.collate import PackedRows, Packing, RecordEncoder, TokenFile, pack
from modelscope_polylm.training.options import TrainingOptions
from modelscope_polylm.training.prepare import DataReport, DataSet, read_data
from modelscope_polylm.training.rows import data_files
from modelscope_polylm.training.schedule import Curriculum, epochs_order, stages_order

ONLY_GROUP, EVALUATION = "data", "evaluation"
STAMP = "stamp.json"


class TokenStore:
    """The examples of groups of data, each in a folder of its own, made anew where their files have changed.

    Args:
        folder: of all of them.
        encoder: makes the examples.
        may_write: False where another process has made them.
        check: gets a group and the file of its tokens.
    """

    def __init__(
        self,
        folder: Path,
        encoder: RecordEncoder,
        may_write: bool = True,
        check: Callable[[str, Path], None] = lambda group, file: None,
    ) -> None:
        self._folder, self._encoder, self._may_write, self._check = folder, encoder, may_write, check

    def open(self, group: str, data_sets: Sequence[DataSet]) -> TokenFile:
        """The examples of a group. Raises InputError for data that cannot be read or learnt."""
        tokens = self._opened(self._folder / group, data_sets)
        self._check(group, self._folder / group / TokenFile.CONTENT)
        return tokens

    def _opened(self, folder: Path, data_sets: Sequence[DataSet]) -> TokenFile:
        wanted = self._stamp(data_sets)
        is_same = wanted is not None and read_own_json(folder / STAMP) == wanted
        if is_same or not self._may_write:
            return TokenFile(folder)
        shutil.rmtree(folder, ignore_errors=True)
        report = DataReport()
        # who repeats a record in a file to train on may want that
        records = (record for _, record in read_data(data_sets, report, keep_duplicates=True))
        tokens = TokenFile.write(folder, records, self._encoder, report)
        write_atomically(folder / STAMP, json.dumps(wanted))
        return tokens

    def _stamp(self, data_sets: Sequence[DataSet]) -> dict[str, Any] | None:
        """Changes with the files that tokens are made of; None where rows come from elsewhere."""
        sources: list[Any] = []
        for data_set in data_sets:
            if data_set.path is None:
                return None
            stats = [(str(file.resolve()), file.stat()) for file in data_files(data_set.path)]
            sources.append([data_set.source.name, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])
        encoder = self._encoder
        return {
            "sources": sources,
            "length": encoder.length,
            "prompt_format": encoder.prompt_format.name,
            "end_in_history": encoder.end_in_history,
        }


class RunRows:
    """The rows that a run reads, in order, and those that are held out.

    Args:
        tokens: examples by group of data.
        data: a curriculum, or the data sets of ONLY_GROUP.
        options: complete.
        step_rows: rows of an optimizer step.
        evaluation: further examples, none of which is learnt.

    Attributes:
        training: the rows in the order of the run.
        held_out: rows to evaluate, by language.
        held_out_records: how many records they hold.
        fill: how full the distinct rows are, from 0 to 1.
    """

    def __init__(
        self,
        tokens: Mapping[str, TokenFile],
        data: Sequence[DataSet] | Curriculum,
        options: TrainingOptions,
        step_rows: int,
        evaluation: TokenFile | None = None,
    ) -> None:
        self._options, self._length = options, options.length or 0
        self._packing: Packing = options.packing  # type: ignore[assignment]
        chosen = {group: self._held_out(each) for group, each in tokens.items()}
        groups = {group: self._packed(each, np.flatnonzero(~chosen[group])) for group, each in tokens.items()}
        counts = {group: len(rows) for group, rows in groups.items()}
        sizes = {group: int(each.lengths[~chosen[group]].sum()) for group, each in tokens.items()}
        if not all(counts.values()):
            raise InputError("All records are held out: lower the share of evaluation, or give more data.")
        order = self._order(data, counts, sizes, step_rows)
        self.training: Subset[dict[str, Any]] = Subset(_joined(list(groups.values())), order.tolist())
        held_out = [(each, chosen[group]) for group, each in tokens.items()]
        if evaluation is not None:
            held_out.append((evaluation, np.ones(len(evaluation), bool)))
        self.held_out = self._by_language(held_out)
        self.held_out_records = sum(len(np.unique(each.records[which])) for each, which in held_out)
        self.fill = sum(sizes.values()) / (sum(counts.values()) * self._length)

    def _held_out(self, tokens: TokenFile) -> NDArray[np.bool_]:
        """Which examples are held out; those of one record go together."""
        random = np.random.default_rng([self._options.seed, 1])
        chosen: NDArray[np.bool_] = random.random(int(tokens.records.max()) + 1) < self._options.evaluation
        return chosen[tokens.records]

    def _packed(self, tokens: TokenFile, examples: NDArray[np.int64]) -> PackedRows:
        rows = [[example] for example in range(len(examples))]
        if self._packing != "none":
            rows = pack(tokens.lengths[examples], self._length)
        return PackedRows(tokens, [[int(examples[example]) for example in row] for row in rows], self._packing)

    def _by_language(
        self, held_out: Sequence[tuple[TokenFile, NDArray[np.bool_]]]
    ) -> dict[str, Dataset[dict[str, Any]]]:
        found: dict[str, list[PackedRows]] = {}
        for tokens, chosen in held_out:
            for number, language in enumerate(tokens.language_names):
                examples = np.flatnonzero(chosen & (tokens.languages == number))
                if len(examples):
                    found.setdefault(language, []).append(self._packed(tokens, examples))
        return {language: _joined(rows) for language, rows in sorted(found.items())}

    def _order(
        self,
        data: Sequence[DataSet] | Curriculum,
        counts: Mapping[str, int],
        sizes: Mapping[str, int],
        step_rows: int,
    ) -> NDArray[np.int64]:
        options = self._options
        limit = None if options.steps is None else options.steps * step_rows
        if not isinstance(data, Curriculum):
            count = counts[ONLY_GROUP]
            return epochs_order(count, limit or max(1, round(options.epochs * count)), options.seed)
        order = stages_order(data.stages, counts, sizes, options.seed)[:limit]
        if not len(order):
            raise InputError("The curriculum reads no row: raise the tokens of its stages.")
        return order


def groups_of(data: Sequence[DataSet] | Curriculum) -> dict[str, Sequence[DataSet]]:
    """The data sets by group."""
    return dict(data.groups) if isinstance(data, Curriculum) else {ONLY_GROUP: data}


def _joined(rows: Sequence[PackedRows]) -> Dataset[dict[str, Any]]:
    joined: Dataset[dict[str, Any]] = ConcatDataset(rows)
    return joined
