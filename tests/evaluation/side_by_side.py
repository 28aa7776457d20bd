"""`python -m tests.evaluation.side_by_side` renews prompts.md: ours and the stock harness's for the same example.

What a model reads is between bars; where a task compares choices, the part that is scored follows after `>>`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelscope_polylm.evaluation.harness import EvaluationTask, _definition
from modelscope_polylm.evaluation.task_data import TaskGroup, task_groups
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS
from tests.evaluation.published import write_lines, write_segments, write_squad, write_table

FILE = Path(__file__).with_name("prompts.md")
HEAD = """\
# What a model is asked

One example of each task in each language: as this package asks, and as lm-evaluation-harness 0.4.13 asks by its own
task. What a model reads is in the block; the part whose likelihood is compared follows after `>>`. Made by
`python -m tests.evaluation.side_by_side`; read every change of it.

Where they differ, and why:

- XNLI: the harness scores a space before the text; the harness of 2023, whose numbers are the paper's, did not.
- PAWS-X: the harness rewrites German, English, Spanish and French sentences, and has other French words than in 2023.
- TyDiQA-GoldP: the harness asks in the language of the passage; the paper asks in English (table 12).
- MTG and WMT20: the harness has no such tasks.
"""
STOCK = {
    "xnli": ("xnli", "xnli_{language}"),
    "pawsx": ("paws-x", "paws_{language}"),
    "xwinograd": ("xwinograd", "xwinograd_{code}"),
    "xcopa": ("xcopa", "default_{language}"),
    "tydiqa": ("tydiqa", "tydiqa_goldp_{language}"),
}
"""Folder and file of the harness's own task of a group."""


def text_in(language: str) -> str:
    """A sentence in a language; an English one where this package knows none."""
    return SENTENCE if language == "en" else TRANSLATIONS.get(language, SENTENCE)


def example(group: TaskGroup, language: str) -> dict[str, Any]:
    """One example in the harness's own form."""
    text, other = text_in(language), f"Re: {text_in(language)}"
    return {
        "xnli": {"premise": text, "hypothesis": other, "label": 1},
        "pawsx": {"sentence1": text, "sentence2": other, "label": 1},
        "xwinograd": {"sentence": f"_ {text}", "option1": "A", "option2": "B", "answer": "2"},
        "xcopa": {"premise": text, "choice1": other, "choice2": text, "question": "cause", "label": 0},
        "tydiqa": {
            "id": f"{group.words[language].get('name', '').lower()}-1", "title": "", "context": text,
            "question": other, "answers": {"text": ["A", "B"], "answer_start": [0, 0]},
        },
    }.get(group.name, {})  # fmt: skip


def write_example(folder: Path, group: TaskGroup, language: str) -> None:
    """The same example in the published form, twice, so that one can come before the other."""
    row, words = example(group, language), group.words[language]
    text, other = text_in(language.partition("-")[0]), text_in(language.partition("-")[2])
    if group.name == "xnli":
        table = [(language, "neutral", row["premise"], row["hypothesis"])] * 2
        write_table(folder / "xnli.test.tsv", ("language", "gold_label", "sentence1", "sentence2"), table)
    elif group.name == "pawsx":
        table = [("1", row["sentence1"], row["sentence2"], "1")] * 2
        write_table(folder / f"{language}/test_2k.tsv", ("id", "sentence1", "sentence2", "label"), table)
    elif group.name == "xwinograd":
        write_lines(folder / f"test/{words['code']}.jsonl", [row, row])
    elif group.name == "xcopa":
        write_lines(folder / f"data/{language}/test.{language}.jsonl", [row, row])
    elif group.name == "tydiqa":
        questions = {words["name"].lower(): [(row["context"], row["question"], ["A", "B"])]}
        for name in ("dev", "train"):
            write_squad(folder / f"tydiqa-goldp-v1.1-{name}.json", questions)
    elif group.name == "wmt20":
        write_segments(folder, words["pair"], [(text, other), (f"1. {text}", f"1. {other}")])
    else:
        fields = dict.fromkeys(("document", "story", "passage"), text) | {"answer": "A", "target": "B"}
        for name in (*group.files[:1], *group.examples[:1]):
            write_lines(folder / name.format(language=language), [fields, fields])


def ours(folder: Path, group: TaskGroup, language: str) -> str:
    """What this package asks, with the paper's number of examples."""
    shots = int(group.is_answered)
    return asked(_definition(EvaluationTask(group.name, group, language, shots), folder), shots)


def stock(group: TaskGroup, language: str) -> str | None:
    """What the harness's own task asks, without examples; None if it has none."""
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    if group.name not in STOCK:
        return None
    names = [name.format(language=language, **group.words[language]) for name in STOCK[group.name]]
    path = Path(lm_eval.tasks.__file__).with_name(names[0]) / f"{names[1]}.yaml"
    rows = datasets.Dataset.from_list([example(group, language)])
    splits = {"train": rows, "validation": rows, "test": rows}
    config = {**load_yaml(path), "custom_dataset": lambda **nothing: splits, "metadata": {}}
    config.pop("tag", None)
    return asked(config, 0)


def asked(config: Mapping[str, Any], shots: int) -> str:
    """The requests of the first question."""
    from lm_eval.api.task import ConfigurableTask

    task = ConfigurableTask(config=dict(config))
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=1)
    return "\n".join(shown(request.args) for request in task.instances)


def shown(arguments: Sequence[Any]) -> str:
    """A request as text."""
    context, rest = arguments
    return f"|{context}|" if isinstance(rest, Mapping) else f"|{context}>>{rest}|"


def page() -> str:
    """The whole file."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    parts = [HEAD]
    for group in task_groups().values():
        for language in group.words:
            with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
                write_example(Path(name), group, language)
                one, other = ours(Path(name), group, language), stock(group, language)
            parts.append(f"## {group.title}, {language}\n\n```text\n{one}\n```\n")
            if other is not None:
                same = other == one
                parts.append("The harness asks the same.\n" if same else f"The harness:\n\n```text\n{other}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
