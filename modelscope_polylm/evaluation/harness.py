"""Tasks in lm-evaluation-harness: what it is asked to run, and what its samples say as our results."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import InputError
from modelscope_polylm.evaluation.language_model import ANSWER_TOKENS, import_harness, language_model
from modelscope_polylm.evaluation.results import Sample, TaskResult
from modelscope_polylm.evaluation.scoring import Bleu, f1, rouge
from modelscope_polylm.evaluation.task_data import Row, TaskGroup
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.text.prompts import known_format

SHARES = ("acc", "exact_match", "f1")
"""Metrics of the harness's own tasks that can be told in percent, the first one first."""

Progress = Callable[[str, int, int], None]
"""Takes the name of a task, how many of its requests are answered, and how many there are."""


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """One task to run.

    Attributes:
        name: 'xnli_de' or the name of a task of the harness.
        group: of the paper; None for a task of the harness.
        language: of the group.
        shots: answered examples before each question; None leaves it to the harness's task.
        chat: whether the questions are a user's messages in the release's format.
    """

    name: str
    group: TaskGroup | None
    language: str = ""
    shots: int | None = 0
    chat: bool = False


def planned_tasks(
    generator: TextGenerator, chosen: Sequence[tuple[TaskGroup, str]], shots: int | None, chat: bool | None
) -> list[EvaluationTask]:
    """The tasks with the paper's rules (section 5.2): a base model sees one answered example before it writes.

    Args:
        generator: its release tells whether it answers messages.
        chosen: groups, each with a language.
        shots: examples before each question; None: one where a base model writes answers, none otherwise.
        chat: ask for answers by messages; None does where the release was tuned.

    Raises:
        InputError: the release of the snapshot is not known, or has no chat format.
    """
    tasks = []
    for group, language in chosen:
        asks = group.is_answered and (_is_tuned(generator) if chat is None else chat)
        if asks and not _is_tuned(generator):
            raise InputError(
                f"{group.title} was to be asked by messages, but the base release has no chat format: leave out --chat."
            )
        count = int(group.is_answered and not asks) if shots is None else shots
        tasks.append(EvaluationTask(f"{group.name}_{language}", group, language, count, asks))
    return tasks


def _is_tuned(generator: TextGenerator) -> bool:
    return known_format(generator.snapshot.prompt_format).name != "base"


def run_task(
    generator: TextGenerator,
    task: EvaluationTask,
    data: Path | None,
    limit: int | None,
    cache: Path | None,
    progress: Progress,
) -> TaskResult:
    """Run one task.

    Args:
        generator: the model.
        task: what to run.
        data: the folder with the paper's data; not needed for tasks of the harness.
        limit: so many questions at most; None takes all.
        cache: a database file of answers, from which an interrupted run goes on.
        progress: called as answers come.

    Raises:
        InputError: missing or wrong data.
        OptionError: an unknown task of the harness.
        DependencyError: lm-evaluation-harness is not installed.
    """
    lm_eval = import_harness()
    model = language_model(generator, lambda done, count: progress(task.name, done, count))
    definition: Any = task.name if task.group is None else _definition(task, data)
    # without its own tasks, whose thousands of files take seconds to read
    manager = lm_eval.tasks.TaskManager(include_defaults=task.group is None)
    # its own bars would run into the one of `progress`
    with contextlib.redirect_stderr(io.StringIO()):
        found = lm_eval.simple_evaluate(
            model, tasks=[definition], num_fewshot=task.shots, limit=limit, use_cache=cache and str(cache.resolve()),
            bootstrap_iters=0, log_samples=True, apply_chat_template=task.chat, fewshot_as_multiturn=False,
            task_manager=manager,
        )  # fmt: skip
    samples = found["samples"][task.name]
    # not counted while they are asked, as a cache may answer
    cut = sum(any(model.is_cut(*request) for request in sample["arguments"]) for sample in samples)
    if task.group is None:
        return _harness_result(task, found, samples, cut)
    return _result(task, task.group, samples, cut)


def harness_tasks() -> list[str]:
    """Names of the harness's own tasks."""
    from lm_eval.tasks import TaskManager

    return list(TaskManager().all_subtasks)


def _definition(task: EvaluationTask, data: Path | None) -> dict[str, Any]:
    group = task.group
    if group is None or data is None:
        raise InputError(f"{task.name} needs its files: pass --data FOLDER. docs/evaluation.md lists them.")
    questions = group.questions(data, task.language)
    examples = group.questions(data, task.language, examples=True) if group.examples and task.shots else []
    shared = {
        "task": task.name,
        "custom_dataset": lambda **metadata: _data_sets(questions, examples),
        "test_split": "test",
        "fewshot_split": "examples" if examples else "test",
        "target_delimiter": group.delimiter if group.is_answered else "",
        "doc_to_text": "context" if task.chat else lambda question: question["context"] + group.prompt_end,
        "metadata": {},
    }
    if group.choices:
        return {**shared, "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
    if group.contexts:
        several = {"doc_to_text": "answer", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
        return {**shared, "output_type": "multiple_choice", **several}
    # what a base model writes ends with its line; a tuned one ends by itself
    until = {"until": [] if task.chat else ["\n"], "max_gen_toks": ANSWER_TOKENS, "do_sample": False}
    return {
        **shared,
        "output_type": "generate_until",
        "doc_to_target": lambda question: question["references"][0],
        "generation_kwargs": until,
        "process_results": lambda question, answers: {"written": 1.0},
        "metric_list": [{"metric": "written", "aggregation": "mean", "higher_is_better": True}],
    }


def _data_sets(questions: Sequence[Row], examples: Sequence[Row]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(questions), **({"examples": Dataset.from_list(examples)} if examples else {})}


def _result(task: EvaluationTask, group: TaskGroup, found: Sequence[Mapping[str, Any]], cut: int) -> TaskResult:
    in_order = sorted(found, key=lambda sample: int(sample["doc_id"]))
    signature = None
    if group.is_answered:
        samples, value, signature = _scored_answers(group, task.language, in_order)
    else:
        samples = [_chosen(sample) for sample in in_order]
        value = _mean(samples)
    shots = task.shots or 0
    return TaskResult(
        task.name, group.name, task.language, group.metric, value, shots, len(samples), cut, signature, samples
    )


def _chosen(sample: Mapping[str, Any]) -> Sample:
    likelihoods = [float(likelihood) for likelihood, _ in sample["filtered_resps"]]
    choice = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    answer = int(sample["doc"]["answer"])
    return Sample(int(sample["doc"]["id"]), 100.0 * (choice == answer), str(choice), str(answer))


def _scored_answers(
    group: TaskGroup, language: str, found: Sequence[Mapping[str, Any]]
) -> tuple[list[Sample], float, str | None]:
    answers = [str(sample["filtered_resps"][0]).strip() for sample in found]
    references = [list(sample["doc"]["references"]) for sample in found]
    ids = [int(sample["doc"]["id"]) for sample in found]
    bleu = Bleu(group.words[language]["tokenize"]) if group.metric == "bleu" else None
    score: Callable[[str, list[str]], float] = {"f1": f1, "rouge": rouge}.get(group.metric, f1)
    if bleu is not None:
        score = lambda answer, known: bleu.sentence(answer, known[0])  # noqa: E731
    samples = [
        Sample(number, score(answer, known), answer, known)
        for number, answer, known in zip(ids, answers, references, strict=True)
    ]
    if bleu is None:
        return samples, _mean(samples), None
    value, signature = bleu.corpus(answers, [known[0] for known in references])
    return samples, value, signature


def _mean(samples: Sequence[Sample]) -> float:
    return sum(sample.score for sample in samples) / len(samples)


def _harness_result(
    task: EvaluationTask, found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], cut: int
) -> TaskResult:
    values = {name.partition(",")[0]: value for name, value in found["results"][task.name].items() if "," in name}
    metric = next((name for name in SHARES if isinstance(values.get(name), (int, float))), None)
    if metric is None:
        raise InputError(
            f"{task.name} has none of the metrics {', '.join(SHARES)}: run it by lm_eval against `polylm serve`."
        )
    ours = [
        Sample(int(sample["doc_id"]), 100.0 * float(sample[metric]))
        for sample in samples
        if isinstance(sample[metric], (int, float))
    ]
    shots = int(found["n-shot"][task.name])
    kind = "f1" if metric == "f1" else "acc"
    return TaskResult(task.name, task.name, "", kind, 100.0 * values[metric], shots, len(samples), cut, None, ours)
