"""The rounds of multilingual self-instruct, as PolyLM's paper made MultiAlpaca (section 4.2).

For each language the seeds are translated, and then each round shows two seeds and one task of earlier rounds in each
of its prompts, filters the tasks of the answers, and adds what is kept. Unlike in the paper a task must also differ
from the seeds, and from those kept earlier in its own round.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_polylm.errors import DependencyError, EndpointError, install_command
from modelscope_polylm.files import file_sha256
from modelscope_polylm.self_instruct.endpoint import Answer, Endpoint
from modelscope_polylm.self_instruct.filters import TaskFilter, wrong_language
from modelscope_polylm.self_instruct.journal import SEEDS, Counts, Entry, Journal
from modelscope_polylm.self_instruct.options import SelfInstructOptions
from modelscope_polylm.self_instruct.seeds import Seed, read_seeds, seeds_for
from modelscope_polylm.self_instruct.tasks import (
    EXAMPLES,
    Dropped,
    Task,
    parse_tasks,
    task_prompt,
    translation_prompt,
)

PACKAGES = ("openai", "icu4py", "rapidfuzz", "py3langid")
REFUSED = "the endpoint refused the prompt"


@dataclass(frozen=True)
class Job:
    """A run of self-instruct.

    Attributes:
        endpoint: base URL of an OpenAI-compatible server.
        model: its name there.
        languages: ISO 639-1 codes.
        seeds: a file as `seeds.read_seeds` takes.
        out: where the tasks go; the journal of the run is OUT.journal.jsonl.
    """

    endpoint: str
    model: str
    languages: Sequence[str]
    seeds: Path
    out: Path
    options: SelfInstructOptions = SelfInstructOptions()

    @property
    def journal(self) -> Path:
        return self.out.with_name(f"{self.out.name}.journal.jsonl")


@dataclass
class Outcome:
    """What became of the tasks by language, of all runs with this journal, and what to know of it."""

    counts: dict[str, Counts] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return sum(counts.kept for counts in self.counts.values())


class Progress(NamedTuple):
    """How far a round is: answers of its prompts, and tasks of the language that are kept."""

    language: str
    round: int
    answers: int
    prompts: int
    kept: int


Report = Callable[[Progress], None]


async def self_instruct(job: Job, report: Report = lambda progress: None) -> Outcome:
    """Write tasks with a model, and keep those that pass the filters.

    The tasks are in `job.out` when it ends, whatever ended it. A run that was interrupted or killed goes on where it
    was, with the prompts that it would have sent.

    Raises:
        InputError: seeds that cannot be used, or a journal of another run.
        EndpointError: the endpoint fails. What came before is kept.
        DependencyError: a package is missing.
        OSError: the output cannot be written.
    """
    _check_packages()
    seeds = read_seeds(job.seeds)
    chosen = {language: seeds_for(seeds, language) for language in job.languages}
    endpoint = Endpoint(job.endpoint, job.model, job.options)
    journal = Journal(job.journal, _run(job))
    outcome = Outcome()
    try:
        for language in job.languages:
            outcome.warnings += await _LanguageRun(job, language, chosen[language], endpoint, journal, report).run()
    except EndpointError as error:
        kept = sum(counts.kept for counts in journal.counts().values())
        raise EndpointError(f"{error} {job.out} has {kept:,} tasks; the same command goes on from there.") from error
    finally:
        journal.write_tasks(job.out)
        journal.close()
        await endpoint.close()
    outcome.counts = journal.counts()
    return outcome


def _check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"Self-instruct needs {', '.join(missing)}: install what it needs with {install_command('instruct')}."
        )


def _run(job: Job) -> dict[str, Any]:
    """What the tasks depend on. Rounds, prompts and languages may be added later."""
    options = job.options
    return {"model": job.model, "seeds": file_sha256(job.seeds), "seed": options.seed, "tasks": options.tasks}


class _LanguageRun:
    """The rounds of one language."""

    def __init__(
        self, job: Job, language: str, seeds: list[Seed], endpoint: Endpoint, journal: Journal, report: Report
    ) -> None:
        self._job, self._options, self._language, self._seeds = job, job.options, language, seeds
        self._endpoint, self._journal, self._report = endpoint, journal, report
        self._filter = TaskFilter(language)
        self._kept: list[Task] = []

    async def run(self) -> list[str]:
        """Run what is missing of the rounds; returns what to know of it."""
        seeds = await self._seed_tasks()
        if len(seeds) < EXAMPLES:
            failed = [each for entry in self._journal.of(self._language, SEEDS) for each in entry.dropped]
            return [f"{self._language}: only {len(seeds)} of {len(self._seeds)} seeds were translated{_why(failed)}"]
        for task in seeds:
            self._filter.keep(task)
        for number in range(1, self._options.rounds + 1):
            entries = await self._round(number, seeds)
            if not any(entry.kept for entry in entries):
                failed = [each for entry in entries for each in entry.dropped]
                return [f"{self._language}: round {number} brought nothing to keep, and was the last{_why(failed)}"]
            self._journal.write_tasks(self._job.out)
        return []

    async def _seed_tasks(self) -> list[Task]:
        """The seeds in the language, those that are not yet in it translated; without those where that failed."""
        if self._seeds[0].language == self._language:
            return [seed.task for seed in self._seeds]
        translated = {entry.prompt for entry in self._journal.of(self._language, SEEDS) if entry.kept}
        missing = [number for number in range(len(self._seeds)) if number not in translated]
        prompts = [
            translation_prompt(self._seeds[number].task, self._seeds[number].language, self._language)
            for number in missing
        ]
        async with contextlib.aclosing(self._endpoint.answers(prompts)) as answers:
            waiting = iter(missing)
            async for answer in answers:
                number = next(waiting)
                task = _translation(self._seeds[number], answer, self._language)
                kept, dropped = ([task], []) if isinstance(task, Task) else ([], [task])
                self._journal.add(Entry(self._language, SEEDS, number, kept, dropped))
                self._report(Progress(self._language, SEEDS, number + 1, len(self._seeds), 0))
        entries = sorted(self._journal.of(self._language, SEEDS), key=lambda entry: entry.prompt)
        return [task for entry in entries for task in entry.kept]

    async def _round(self, number: int, seeds: list[Task]) -> list[Entry]:
        """Answer the prompts of a round that were not answered before; returns the entries of all of them.

        A round that brought nothing is asked for again: its options may have been wrong.
        """
        prompts = self._prompts(number, seeds)
        before = self._journal.of(self._language, number)
        for task in (task for entry in before for task in entry.kept):
            self._keep(task)
        done = len(before) if any(entry.kept for entry in before) else 0
        async with contextlib.aclosing(self._endpoint.answers(prompts[done:])) as answers:
            async for answer in answers:
                entry = self._entry(number, done, answer)
                self._journal.add(entry)
                done += 1
                self._report(Progress(self._language, number, done, len(prompts), len(self._kept)))
        return self._journal.of(self._language, number)

    def _prompts(self, number: int, seeds: list[Task]) -> list[str]:
        """The prompts of a round, the same each time: two seeds and a task of earlier rounds, or three seeds."""
        choice = random.Random(f"{self._options.seed} {self._language} {number}")
        count = self._options.prompts if self._kept else self._options.first_prompts
        prompts = []
        for _ in range(count):
            pooled = [choice.choice(self._kept)] if self._kept else []
            examples = choice.sample(seeds, EXAMPLES - len(pooled)) + pooled
            prompts.append(task_prompt(self._language, examples, self._options.tasks))
        return prompts

    def _entry(self, round: int, prompt: int, answer: Answer) -> Entry:
        """What becomes of an answer."""
        entry = Entry(self._language, round, prompt)
        emptied = 0
        for found in parse_tasks(answer.text, answer.is_cut) if not answer.refusal else [_refused(answer)]:
            checked = self._filter.checked(found) if isinstance(found, Task) else found
            if isinstance(checked, Dropped):
                entry.dropped.append(checked)
                continue
            entry.kept.append(checked)
            emptied += checked != found
            self._keep(checked)
        return replace(entry, emptied=emptied)

    def _keep(self, task: Task) -> None:
        self._filter.keep(task)
        self._kept.append(task)


def _translation(seed: Seed, answer: Answer, language: str) -> Task | Dropped:
    """The translated seed, with the texts of its own that it keeps."""
    if answer.refusal:
        return _refused(answer)
    task = parse_tasks(answer.text, answer.is_cut)[0]
    if isinstance(task, Dropped):
        return task
    reason = wrong_language(task.instruction, language)
    return (
        Dropped(reason, task.instruction)
        if reason
        else replace(task, **{name: getattr(seed.task, name) for name in seed.keep})
    )


def _refused(answer: Answer) -> Dropped:
    return Dropped(REFUSED, answer.refusal)


def _why(dropped: Sequence[Dropped]) -> str:
    """The end of a warning: the last reason, and what it was about."""
    return f": {dropped[-1].reason}, {dropped[-1].text[:200]!r}." if dropped else "."
