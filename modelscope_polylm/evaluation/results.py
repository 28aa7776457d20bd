"""What a run of `polylm eval` found, and the JSON file that keeps it: each task's value and each example's score."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from modelscope_polylm.errors import InputError
from modelscope_polylm.files import write_atomically

FORMAT = 1
"""The form of the file; a change that older readers would misunderstand counts it up."""

Metric = Literal["acc", "f1", "rouge", "bleu"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Sample:
    """One example of a task.

    Attributes:
        id: its row in the task's file, from 0.
        score: in percent: 100 or 0 for a decision; an example's own F1, mean ROUGE or sentence BLEU.
        output: what the model wrote, or the choice that it found most probable.
        reference: what was right; several texts where each of them is.
    """

    id: int
    score: float
    output: str | None = None
    reference: str | list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The sample as JSON, without what is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class TaskResult:
    """One task in one language.

    Attributes:
        task: its name in lm-evaluation-harness, such as "xnli_en".
        group: the task in all languages, such as "xnli".
        language: ISO 639-1 code; of a translation two, as "en-de"; "" for a stock task.
        metric: what `value` is: accuracy, F1, the mean of ROUGE-1, ROUGE-2 and ROUGE-L, or BLEU.
        value: in percent: the mean of the samples' scores; BLEU is one of the whole set.
        shots: examples with answers before each question.
        rows: how many examples were asked.
        cut: of how many the beginning was cut off, as they were longer than the model's context.
        signature: sacrebleu's, which says how BLEU was computed; None for others.
        samples: each example, in order.
    """

    task: str
    group: str
    language: str
    metric: str
    value: float
    shots: int
    rows: int
    cut: int = 0
    signature: str | None = None
    samples: list[Sample] = field(default_factory=list)

    def texts(self) -> tuple[list[str], list[str]]:
        """What the model wrote, and of each the first text that counts as right."""
        references = [[each.reference] if isinstance(each.reference, str) else each.reference for each in self.samples]
        return [each.output or "" for each in self.samples], [each[0] if each else "" for each in references]


@dataclass(frozen=True)
class ModelFacts:
    """Which model it was.

    Attributes:
        folder: the snapshot's folder.
        release: the short name of the published release; None if that is unknown.
        sha256: of the weight files, and of the adapter's.
    """

    folder: str
    release: str | None
    sha256: str


@dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        model: what was evaluated.
        versions: of 'modelscope-polylm', 'lm_eval', 'sacrebleu', 'torch' and 'transformers'.
        options: flags of the command that change scores, by their names.
        seconds: the time that it took; of a run that was interrupted, the last part.
        tasks: in the order of the run.
    """

    model: ModelFacts
    versions: dict[str, str]
    options: dict[str, Any]
    seconds: float
    tasks: list[TaskResult] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON."""
        tasks = [{**vars(task), "samples": [sample.to_dict() for sample in task.samples]} for task in self.tasks]
        return {"format": FORMAT, **vars(self), "model": vars(self.model), "tasks": tasks}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Results:
        """The results of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        tasks = [
            TaskResult(**{**task, "samples": [Sample(**sample) for sample in task["samples"]]})
            for task in found["tasks"]
        ]
        for task in tasks:
            _check(task)
        rest = {name: value for name, value in found.items() if name != "format"}
        return cls(**{**rest, "model": ModelFacts(**found["model"]), "tasks": tasks})


def write_results(path: Path, results: Results) -> None:
    """Write a file of results; a reader sees it as a whole or not at all. Raises InputError if it cannot be written."""
    text = json.dumps(results.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): give another --out.") from error


def read_results(path: Path) -> Results:
    """Read a file of results. Raises InputError if it is none, or one of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no file of `polylm eval --out`: it is not JSON.") from error
    if not isinstance(found, dict) or "format" not in found:
        raise InputError(f"{path} is no file of `polylm eval --out`: it has no 'format'.")
    if found["format"] != FORMAT:
        raise InputError(
            f"{path} has format {found['format']!r}, and this version reads format {FORMAT}: run `polylm eval` again, "
            "or read it with the version that wrote it."
        )
    try:
        return Results.from_dict(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no complete file of `polylm eval --out` ({error}).") from error


def _check(task: TaskResult) -> None:
    # what a report computes with; a file that a person edited is told where it breaks
    if task.metric not in METRICS:
        raise ValueError(f"task {task.task!r} has the metric {task.metric!r}")
    for value in (task.value, *(sample.score for sample in task.samples)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"task {task.task!r} has the value {value!r}")
