"""A whole evaluation: which tasks run, from which cache it goes on, and what the results say about the model."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import InputError, OptionError, PolyLMError, suggestion
from modelscope_polylm.evaluation.harness import EvaluationTask, Progress, harness_tasks, planned_tasks, run_task
from modelscope_polylm.evaluation.results import ModelFacts, Results, write_results
from modelscope_polylm.evaluation.task_data import check_languages, chosen_groups, chosen_languages, task_groups
from modelscope_polylm.files import file_sha256
from modelscope_polylm.generator import TextGenerator

PAPER = "paper"
"""Stands for all tasks of the paper."""
DISTRIBUTIONS = ("modelscope-polylm", "lm_eval", "sacrebleu", "rouge_score", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to run, and how.

    Attributes:
        tasks: 'paper', names of its tasks, or names of the harness's own.
        languages: codes; none for the paper's main ones.
        shots: answered examples before each question; None follows the paper.
        limit: so many questions a task at most; None takes all.
        chat: ask for answers by messages; None does where the release was tuned.
        data: the folder with the paper's data.
        loaded: how the model was loaded, such as its quantization.
    """

    tasks: Sequence[str] = (PAPER,)
    languages: Sequence[str] = ()
    shots: int | None = None
    limit: int | None = None
    chat: bool | None = None
    data: Path | None = None
    loaded: dict[str, Any] = dataclasses.field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """What results depend on; the folder with the data is not among it."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        own.pop("data")
        return {**own, "tasks": list(self.tasks), "languages": list(self.languages)}

    def plan(self, generator: TextGenerator) -> list[EvaluationTask]:
        """The tasks to run.

        Raises:
            OptionError: an unknown task or language.
            InputError: the release of the snapshot is not known, or has no chat format.
        """
        known = {PAPER, *task_groups(), *(name.partition("_")[0] for name in task_groups())}
        theirs = [name for name in self.tasks if name not in known]
        groups = chosen_groups([name for name in self.tasks if name in known])
        check_languages(groups, self.languages if groups else ())
        if theirs:
            names = harness_tasks()
            for name in theirs:
                if name not in names:
                    raise OptionError(f"There is no task {name!r}: {suggestion(name, [*sorted(known), *names])}")
        pairs = [(group, language) for group in groups for language in chosen_languages(group, self.languages)]
        own = planned_tasks(generator, pairs, self.shots, self.chat)
        return [*own, *(EvaluationTask(name, None, shots=self.shots) for name in theirs)]

    def run(self, generator: TextGenerator, out: Path | None, progress: Progress) -> Results:
        """Run all tasks, and write the results where a file is given.

        An interrupted run goes on: until it is complete, its answers are in a file next to `out`, which belongs to
        this model and these options alone.

        Raises:
            OptionError, InputError: as `plan` and `run_task`; or a file that cannot be written.
        """
        tasks = self.plan(generator)
        check_files(tasks, self.data)
        if out is not None:
            check_folder(out)
        model = model_facts(generator)
        cache = self._cache(out, model)
        start = time.monotonic()
        try:
            found = [run_task(generator, task, self.data, self.limit, cache, progress) for task in tasks]
            results = Results(model, versions(), self.options(), round(time.monotonic() - start, 1), found)
            if out is not None:
                write_results(out, results)
        except PolyLMError:  # some are errors of the system, too
            raise
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror or error}.") from error
        if cache is not None:
            for file in cache.parent.glob(f"{cache.name}*"):
                file.unlink()
        return results

    def _cache(self, out: Path | None, model: ModelFacts) -> Path | None:
        if out is None:
            return None
        settings = [model.sha256, self.loaded, versions()]
        key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        return out.with_name(f"{out.name}.{key[:12]}.answers")


def check_files(tasks: Sequence[EvaluationTask], data: Path | None) -> None:
    """Raise InputError for a file that a later task would miss."""
    for task in tasks:
        if task.group is None:
            continue
        if data is None:
            raise InputError(
                f"{task.group.title} needs its files, and nothing is downloaded: pass --data FOLDER with "
                f"{task.group.missing(task.language)}."
            )
        task.group.find(data, task.language)
        if task.shots and task.group.examples:
            task.group.find(data, task.language, examples=True)


def check_folder(out: Path) -> None:
    """Raise InputError where the results could not be written in the end."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror or error}): give another --out.") from error


def model_facts(generator: TextGenerator) -> ModelFacts:
    """The model's folder, its release, and the sha256 of all files with weights, an adapter's among them."""
    snapshot = generator.snapshot
    digest = hashlib.sha256()
    files = sorted(each.path for each in snapshot.weight_files.files)
    if snapshot.adapter is not None:
        files += sorted(snapshot.adapter.folder.glob("adapter_*"))
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    release = snapshot.release
    return ModelFacts(snapshot.folder.name, release.name if release else None, digest.hexdigest())


def versions() -> dict[str, str]:
    """Versions of what computes or scores."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
