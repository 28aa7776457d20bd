"""Which rows a run reads, and in which order: epochs over one data set, or stages that mix several by shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelscope_polylm.errors import OptionError, suggestion
from modelscope_polylm.training.prepare import DataSet
from modelscope_polylm.training.sources import find_source

WHOLE = 1e-6
"""Shares may differ from 1 by so much together."""


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        tokens: that it reads.
        shares: of its tokens, by group of data; together 1.
    """

    tokens: int
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Curriculum:
    """Groups of data, and the stages in which they are mixed.

    Attributes:
        groups: data sets by group.
        stages: in order.
    """

    groups: Mapping[str, Sequence[DataSet]]
    stages: Sequence[Stage]

    @classmethod
    def read(cls, file: Path) -> Curriculum:
        """Read a YAML file such as

            groups: {english: [text=en.jsonl], other: [text=de.jsonl, text=th.jsonl]}
            stages:
              - {tokens: 2000000, shares: {english: 0.7, other: 0.3}}
              - {tokens: 1000000, shares: {english: 0.4, other: 0.6}}

        whose paths are relative to its own folder.

        Raises:
            OptionError: names what is wrong with the file.
        """
        import yaml

        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise OptionError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or set(content) != {"groups", "stages"}:
            raise OptionError(f"{file} must hold 'groups' and 'stages'; see docs/fine-tuning.md.")
        groups = _groups(content["groups"], file)
        stages = content["stages"]
        if not isinstance(stages, list) or not stages:
            raise OptionError(f"{file}: stages must be a list of at least one stage.")
        return cls(groups, [_stage(stage, number, groups, file) for number, stage in enumerate(stages, 1)])


def _groups(value: Any, file: Path) -> dict[str, list[DataSet]]:
    if not isinstance(value, dict) or not value:
        raise OptionError(f"{file}: groups must name data, as in {{english: [text=en.jsonl]}}.")
    return {str(name): _data_sets(name, names, file) for name, names in value.items()}


def _data_sets(group: Any, names: Any, file: Path) -> list[DataSet]:
    if not isinstance(names, list) or not names or not all("=" in str(name) for name in names):
        raise OptionError(f"{file}: the group {group} must be a list of NAME=PATH, not {names!r:.80}.")
    pairs = (str(name).partition("=") for name in names)
    return [DataSet(find_source(name), file.parent / Path(path).expanduser()) for name, _, path in pairs]


def _stage(value: Any, number: int, groups: Mapping[str, Any], file: Path) -> Stage:
    where = f"{file}: stage {number}"
    if not isinstance(value, dict) or set(value) != {"tokens", "shares"} or not isinstance(value["shares"], dict):
        raise OptionError(f"{where} must be {{tokens: 2000000, shares: {{GROUP: 0.7, ...}}}}, not {value!r:.80}.")
    tokens, shares = value["tokens"], {str(name): share for name, share in value["shares"].items()}
    for name in shares:
        if name not in groups:
            raise OptionError(f"{where} has a share of {name!r}, which is no group: {suggestion(name, groups)}")
    if not _is_number(tokens) or tokens < 1 or tokens != int(tokens):
        raise OptionError(f"{where}: tokens={tokens!r} must be a whole number of at least 1.")
    if not all(_is_number(share) and share >= 0 for share in shares.values()):
        raise OptionError(f"{where}: shares must be numbers of at least 0, not {list(shares.values())}.")
    if abs(sum(shares.values()) - 1) > WHOLE:
        raise OptionError(f"{where}: the shares add up to {sum(shares.values()):g}, not to 1.")
    return Stage(int(tokens), shares)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def epochs_order(rows: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Row numbers: each epoch all rows in a new order, `wanted` of them in all."""
    random = np.random.default_rng(seed)
    epochs = [random.permutation(rows) for _ in range(-(-wanted // rows))]
    return np.concatenate(epochs)[:wanted].astype(np.int64)


def stages_order(
    stages: Sequence[Stage], rows: Mapping[str, int], tokens: Mapping[str, int], seed: int
) -> NDArray[np.int64]:
    """Row numbers of all stages; the rows of the groups are numbered one group after the other.

    In a stage rows of its groups stand in a random order. A group goes on in the next stage where it stopped, and
    begins anew, in another order, when all of its rows have been read.

    Args:
        stages: in order.
        rows, tokens: of each group.
        seed: of the order.
    """
    random = np.random.default_rng(seed)
    first = dict(zip(rows, np.cumsum([0, *rows.values()]).tolist(), strict=False))
    unread: dict[str, list[int]] = {name: [] for name in rows}
    order: list[int] = []
    for stage in stages:
        chosen: list[int] = []
        for name, share in stage.shares.items():
            wanted = round(stage.tokens * share * rows[name] / tokens[name])
            while len(unread[name]) < wanted:
                unread[name] += (first[name] + random.permutation(rows[name])).tolist()
            chosen += unread[name][:wanted]
            del unread[name][:wanted]
        order += random.permutation(np.array(chosen, np.int64)).tolist()
    return np.array(order, np.int64)
