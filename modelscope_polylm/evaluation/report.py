"""Results next to the paper's, as a table, Markdown or HTML with plots; and two runs next to each other."""

from __future__ import annotations

import dataclasses
import functools
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import DependencyError, InputError, OptionError, install_command
from modelscope_polylm.evaluation.results import Results, TaskResult
from modelscope_polylm.evaluation.scoring import Bleu
from modelscope_polylm.evaluation.task_data import task_groups

PAPER_FILE = Path(__file__).parent / "paper.yaml"
BASE_RELEASES = ("13b", "1.7b")
NORMAL_95 = 1.96
"""Standard deviations on either side that hold 95 % of a normal distribution."""
STYLE = (
    "body{font-family:sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)
SIGNIFICANT = 0.05
OURS = "this run"
Cells = list[list[str]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A task, or the mean of a benchmark's main languages.

    Attributes:
        name: of the task, or 'xnli, mean'.
        group: of the paper; the task's own name otherwise.
        value: in percent.
        margin: half of the 95 % confidence interval.
        paper: the published value of each model; empty where there is none.
        rows: questions.
    """

    name: str
    group: str
    value: float
    margin: float
    paper: dict[str, float]
    rows: int


@functools.cache
def published() -> dict[str, Any]:
    """The paper's tables: by benchmark and kind of model ('base', 'tuned') the table's number and values by model."""
    import yaml

    found: dict[str, Any] = yaml.safe_load(PAPER_FILE.read_text(encoding="utf-8"))
    return found


def report_lines(results: Results) -> list[Line]:
    """A line for each task and, where all main languages of a benchmark are there, their mean."""
    kind = "base" if results.model.release in BASE_RELEASES else "tuned"
    lines: list[Line] = []
    for group in dict.fromkeys(task.group for task in results.tasks):
        tasks = [task for task in results.tasks if task.group == group]
        models: dict[str, dict[str, float]] = published().get(group, {}).get(kind, {}).get("models", {})
        for task in tasks:
            known = {model: values[task.language] for model, values in models.items() if task.language in values}
            lines.append(Line(task.task, group, task.value, margin(task), known, task.rows))
        lines += _mean_lines(group, tasks, models)
    return lines


def _mean_lines(group: str, tasks: Sequence[TaskResult], models: dict[str, dict[str, float]]) -> list[Line]:
    found = []
    for name, languages in _averaged(group).items():
        chosen = [task for task in tasks if task.language in languages]
        if len(chosen) < max(len(languages), 2):
            continue
        count = len(chosen)
        spread = math.sqrt(sum(margin(task) ** 2 for task in chosen)) / count
        paper = {model: sum(values[each] for each in languages) / count for model, values in models.items()}
        value = sum(task.value for task in chosen) / count
        found.append(Line(name, group, value, spread, paper, sum(task.rows for task in chosen)))
    return found


def _averaged(group: str) -> dict[str, list[str]]:
    """Names of the averages that the paper gives for a benchmark, and of which languages they are."""
    if group not in task_groups():
        return {}
    languages = task_groups()[group].languages
    into = [language for language in languages if language.endswith("-en")]
    if not into:
        return {f"{group}, mean": languages}
    return {f"{group} into English, mean": into, f"{group} from English, mean": languages[len(into) :]}


def margin(task: TaskResult) -> float:
    """Half of the 95 % confidence interval: Wilson's for decisions, bootstrapped for BLEU, else by the spread."""
    if task.metric == "bleu":
        return Bleu(task_groups()[task.group].words[task.language]["tokenize"]).margin(*task.texts())
    scores = [sample.score for sample in task.samples]
    if len(scores) < 2:
        return math.inf
    if task.metric == "acc":
        share, square = sum(scores) / 100 / len(scores), NORMAL_95**2 / len(scores)
        return 100 * NORMAL_95 * math.sqrt(share * (1 - share) / len(scores) + square / 4 / len(scores)) / (1 + square)
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return NORMAL_95 * math.sqrt(variance / len(scores))


def result_table(results: Results) -> Cells:
    """The cells of all lines under their header; the difference is that to PolyLM in the paper."""
    lines = report_lines(results)
    models = list(dict.fromkeys(model for line in lines for model in reversed(line.paper)))
    rows = [["task", OURS, "± (95 %)", *models, "difference", "questions"]]
    for line in lines:
        paper = [f"{line.paper[model]:.1f}" if model in line.paper else "" for model in models]
        ours = next((value for model, value in line.paper.items() if model.startswith("PolyLM")), None)
        rows.append(
            [line.name, f"{line.value:.1f}", _shown(line.margin), *paper, _difference(line, ours), f"{line.rows:,}"]
        )
    return rows


def _shown(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "–"


def _difference(line: Line, paper: float | None) -> str:
    # marked where the interval does not hold the published value
    if paper is None:
        return ""
    outside = abs(line.value - paper) > line.margin
    return f"{line.value - paper:+.1f}{' *' if outside else ''}"


def facts(results: Results) -> list[str]:
    """What the values depend on, a line each."""
    model, options = results.model, {**results.options, **dict(results.options.get("loaded") or {})}
    chosen = {name: value for name, value in options.items() if name != "loaded" and value not in (None, [], ())}
    return [
        f"model: {model.folder}, release {model.release or 'unknown'}, sha256 {model.sha256}",
        f"versions: {', '.join(f'{name} {version}' for name, version in results.versions.items())}",
        f"options: {', '.join(f'{name}={value}' for name, value in chosen.items())}",
        f"computed in {results.seconds:,.0f} s; prompts that lost their beginning: {_cut(results):,}",
        *dict.fromkeys(f"BLEU: {task.signature}" for task in results.tasks if task.signature),
        "* the 95 % confidence interval does not hold the value of PolyLM in the paper (arXiv 2307.06018)",
    ]


def _cut(results: Results) -> int:
    return sum(task.cut for task in results.tasks)


def write_report(file: Path, results: Results) -> None:
    """Write a report as .md or .html.

    Raises:
        OptionError: another kind of file.
        InputError: it cannot be written.
        DependencyError: matplotlib is missing, which draws the plots of HTML.
    """
    check_report(file)
    make = markdown if file.suffix == ".md" else html_page
    try:
        file.write_text(make(result_table(results), facts(results), results), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}.") from error


def check_report(file: Path) -> None:
    """Raise OptionError for a report that is neither .md nor .html."""
    if file.suffix not in (".md", ".html"):
        raise OptionError(f"A report ends in .md or .html, which {file} does not.")


def markdown(cells: Cells, notes: Sequence[str], results: Results | None = None) -> str:
    """A page of Markdown."""
    header, *rows = [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in cells]
    ruler = f"|{'---|' * len(cells[0])}"
    return "\n".join(["# Evaluation", "", header, ruler, *rows, "", *(f"- {_escaped(note)}" for note in notes)]) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<\\`])", r"\\\1", text)


def html_page(cells: Cells, notes: Sequence[str], results: Results) -> str:
    """A page that needs nothing else, with a plot for each benchmark."""

    def row(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    table = "\n".join([row(cells[0], "th"), *(row(each, "td") for each in cells[1:])])
    plots = "\n".join(f"<figure>{svg}</figure>" for svg in _plots(report_lines(results)))
    items = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>'
        f"</head>\n<body><h1>Evaluation</h1>\n<table>\n{table}\n</table>\n{plots}\n<ul>\n{items}\n</ul></body></html>\n"
    )


def _plots(lines: Sequence[Line]) -> list[str]:
    """An SVG image for each benchmark: bars of this run with their intervals, next to the paper's."""
    try:
        import matplotlib
    except ImportError as error:
        raise DependencyError(f"matplotlib draws the plots of an HTML report: {install_command('plot')}") from error
    from matplotlib.figure import Figure

    images = []
    for group in dict.fromkeys(line.group for line in lines):
        own = [line for line in lines if line.group == group]
        names = [OURS, *own[0].paper]
        figure = Figure(figsize=(1.2 + 0.22 * len(own) * (len(names) + 1), 3), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(names):
            places = [index + number / (len(names) + 1) for index in range(len(own))]
            values = [line.value if name == OURS else line.paper.get(name, math.nan) for line in own]
            margins = [line.margin if math.isfinite(line.margin) else 0 for line in own] if name == OURS else None
            axes.bar(places, values, 1 / (len(names) + 1), yerr=margins, label=name)
        axes.set_xticks(range(len(own)), [line.name.removeprefix(f"{group}_") for line in own], rotation=30)
        axes.set_title(group)
        axes.legend(fontsize="small")
        image = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "polylm"}):
            figure.savefig(image, format="svg", metadata={"Date": None})
        text = image.getvalue()
        images.append(text[text.index("<svg") :])
    return images


def comparison_table(before: Results, after: Results) -> tuple[list[list[str]], list[str]]:
    """Two runs on the same questions: the values, their difference and the probability that chance alone made it.

    Decisions by McNemar's exact test, means of F1 and ROUGE by a paired t-test, BLEU by sacrebleu's paired bootstrap.

    Raises:
        InputError: the runs have no task in common, or asked other questions.
        DependencyError: scipy or sacrebleu is missing.
    """
    others = {task.task: task for task in after.tasks}
    rows = [["task", "first", "second", "difference", "p", "questions"]]
    for task in before.tasks:
        if (other := others.get(task.task)) is None:
            continue
        _check_same(task, other)
        p = probability(task, other)
        mark = " *" if p < SIGNIFICANT else ""
        change = f"{other.value - task.value:+.2f}{mark}"
        rows.append([task.task, f"{task.value:.2f}", f"{other.value:.2f}", change, f"{p:.3f}", f"{task.rows:,}"])
    if len(rows) == 1:
        raise InputError("The two runs have no task in common, so nothing can be compared.")
    names = {task.task for task in before.tasks} ^ set(others)
    notes = [f"* p < {SIGNIFICANT}", *_changes(before, after)]
    return rows, notes + ([f"only in one of them: {', '.join(sorted(names))}"] if names else [])


def _check_same(task: TaskResult, other: TaskResult) -> None:
    asked, theirs = ([(sample.id, sample.reference) for sample in each.samples] for each in (task, other))
    if asked != theirs:
        raise InputError(
            f"{task.task} has {len(asked)} questions in the first file and {len(theirs)} in the second, and they are "
            "not the same: run both with the same data and --limit."
        )


def _changes(before: Results, after: Results) -> list[str]:
    pairs = {"model": (before.model.sha256[:12], after.model.sha256[:12])}
    for title, one, two in (
        ("versions", before.versions, after.versions),
        ("options", before.options, after.options),
    ):
        for name in dict.fromkeys([*one, *two]):
            pairs[f"{title}, {name}"] = (str(one.get(name)), str(two.get(name)))
    return [f"{name}: {one} and {two}" for name, (one, two) in pairs.items() if one != two]


def probability(task: TaskResult, other: TaskResult) -> float:
    """How probable such a difference is where two models are equally good."""
    if task.metric == "bleu":
        (first, references), (second, _) = task.texts(), other.texts()
        if first == second:
            return 1.0
        return Bleu(task_groups()[task.group].words[task.language]["tokenize"]).probability(first, second, references)
    try:
        from scipy import stats
    except ImportError as error:
        raise DependencyError(f"scipy compares runs: {install_command('eval')}") from error
    changes = [mine.score - theirs.score for mine, theirs in zip(task.samples, other.samples, strict=True)]
    if not any(changes):
        return 1.0
    if task.metric == "acc":
        worse, better = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        return float(stats.binomtest(worse, worse + better).pvalue)
    if len(set(changes)) == 1:
        return 0.0 if len(changes) > 1 else 1.0
    return float(stats.ttest_1samp(changes, 0.0).pvalue)
