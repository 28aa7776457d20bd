"""What a model is asked, next to what the harness's own tasks ask: a file that people read."""

from __future__ import annotations

from modelscope_polylm.evaluation.task_data import task_groups
from tests.evaluation.side_by_side import FILE, page


def test_prompts_are_those_that_were_read() -> None:
    """Renewed by `python -m tests.evaluation.side_by_side`."""
    assert FILE.read_text(encoding="utf-8") == page()


def test_each_task_and_language_is_there() -> None:
    sections = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    groups = task_groups().values()
    assert sections == [f"## {group.title}, {language}" for group in groups for language in group.words]
    assert all(set(group.words) == {*group.languages, *group.other_languages} for group in groups)
