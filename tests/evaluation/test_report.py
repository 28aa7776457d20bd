"""The paper's numbers as data, the report next to them, and two runs compared."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.evaluation.report import (
    comparison_table,
    facts,
    margin,
    published,
    report_lines,
    result_table,
    write_report,
)
from modelscope_polylm.evaluation.results import ModelFacts, Results, Sample, TaskResult, write_results
from modelscope_polylm.evaluation.task_data import task_groups

AVERAGES = {
    ("xnli", "base"): (42.1, 34.3, 46.1),
    ("xnli", "tuned"): (38.3, 34.3, 44.2),
    ("pawsx", "base"): (51.8, 50.1, 55.9),
    ("pawsx", "tuned"): (57.2, 50.7, 59.3),
    ("xwinograd", "base"): (70.0, 71.3, 73.4),
    ("xwinograd", "tuned"): (66.5, 73.5, 72.3),
    ("xcopa", "base"): (60.9, 57.5, 65.1),
    ("xcopa", "tuned"): (56.4, 57.8, 67.5),
    ("tydiqa", "base"): (37.1, 47.8, 49.0),
    ("tydiqa", "tuned"): (20.2, 37.1, 46.4),
    ("mtg_sg", "base"): (12.1, 8.0, 8.8),
    ("mtg_tg", "base"): (10.7, 14.9, 14.4),
    ("mtg_qg", "base"): (13.0, 13.7, 14.9),
    ("mtg_sum", "base"): (9.7, 11.7, 15.4),
    ("mtg_sg", "tuned"): (10.4, 6.0, 10.5),
    ("mtg_tg", "tuned"): (17.9, 15.1, 16.6),
    ("mtg_qg", "tuned"): (24.2, 19.4, 22.1),
    ("mtg_sum", "tuned"): (16.8, 14.0, 16.6),
}
"""The averages that the paper prints, of BLOOM, LLaMA and PolyLM."""
TRANSLATION = {
    ("base", "into"): (16.1, 26.5, 24.6),
    ("base", "from"): (3.9, 14.3, 19.7),
    ("tuned", "into"): (10.91, 19.14, 26.32),
    ("tuned", "from"): (3.3, 8.5, 20.5),
}


def task(name: str, scores: list[float], metric: str = "acc", **more: Any) -> TaskResult:
    group, _, language = name.partition("_")
    samples = [Sample(number, score, "0", "0") for number, score in enumerate(scores)]
    value = sum(scores) / len(scores)
    made = TaskResult(name, group, language, metric, value, 0, len(scores), 0, None, samples)
    return dataclasses.replace(made, **more)


def results(*tasks: TaskResult, release: str | None = "13b", **options: Any) -> Results:
    return Results(ModelFacts("polylm", release, "ab" * 32), {"torch": "2.13"}, options, 5.0, list(tasks))


@pytest.mark.parametrize(("group", "kind"), AVERAGES)
def test_published_values_have_the_published_averages(group: str, kind: str) -> None:
    models = published()[group][kind]["models"]
    for values, average in zip(models.values(), AVERAGES[group, kind], strict=True):
        assert list(models)[-1].startswith("PolyLM")
        main = [values[language] for language in task_groups()[group].languages]
        # the values are rounded, and so is their average
        assert sum(main) / len(main) == pytest.approx(average, abs=0.11)
        assert set(values) == {*task_groups()[group].languages, *task_groups()[group].other_languages}


@pytest.mark.parametrize(("kind", "direction"), TRANSLATION)
def test_published_translations(kind: str, direction: str) -> None:
    for values, average in zip(
        published()["wmt20"][kind]["models"].values(), TRANSLATION[kind, direction], strict=True
    ):
        chosen = [value for pair, value in values.items() if pair.endswith("-en") == (direction == "into")]
        assert sum(chosen) / 4 == pytest.approx(average, abs=0.1)


def test_a_line_stands_next_to_the_papers_model_of_its_kind() -> None:
    made = results(task("xnli_en", [100.0, 0.0] * 50), task("xnli_zh", [100.0, 0.0, 0.0, 0.0] * 50))
    table = result_table(made)
    assert table[0] == [
        "task",
        "this run",
        "± (95 %)",
        "PolyLM-13B",
        "LLaMA-13B",
        "BLOOM-7.1B",
        "difference",
        "questions",
    ]
    assert table[1] == ["xnli_en", "50.0", "9.6", "54.6", "35.5", "53.9", "-4.6", "100"]
    assert table[2] == ["xnli_zh", "25.0", "6.0", "35.9", "34.6", "35.5", "-10.9 *", "200"]
    tuned = result_table(results(task("xnli_en", [100.0, 0.0]), release="multialpaca-13b"))
    assert tuned[0][3] == "PolyLM-MultiAlpaca-13B" and tuned[1][3] == "54.3"


def test_the_mean_of_a_benchmark_needs_all_of_its_main_languages() -> None:
    languages = task_groups()["pawsx"].languages
    made = [task(f"pawsx_{language}", [100.0, 0.0, 0.0, 0.0] * 25) for language in languages]
    *own, mean = report_lines(results(*made))
    assert [line.name for line in own] == [each.task for each in made]
    assert (mean.name, mean.value, mean.rows) == ("pawsx, mean", 25.0, 700)
    assert mean.margin == pytest.approx(own[0].margin / 7**0.5)
    assert mean.paper["PolyLM-13B"] == pytest.approx(55.9, abs=0.05)
    assert all("mean" not in line.name for line in report_lines(results(*made[:-1])))


def test_intervals() -> None:
    # Wilson's interval of 0 in 10: from 0 to 27.8 %
    assert margin(task("xnli_en", [0.0] * 10)) == pytest.approx(13.9, abs=0.05)
    assert margin(task("tydiqa_en", [0.0, 100.0] * 50, "f1")) == pytest.approx(1.96 * 50.25 / 10, abs=0.01)
    assert margin(task("tydiqa_en", [5.0], "f1")) == float("inf")
    made = task("wmt20_en-de", [0.0] * 3, "bleu")
    texts = ["Rom ist die Hauptstadt von Italien.", "Paris ist eine große Stadt.", "Das ist ein ganz anderer Satz."]
    same = [Sample(number, 100.0, text, [text]) for number, text in enumerate(texts)]
    assert margin(dataclasses.replace(made, samples=same)) == 0.0
    wrong = [same[0], Sample(1, 0.0, "Etwas anderes steht hier.", [texts[1]]), same[2]]
    assert margin(dataclasses.replace(made, samples=wrong)) > 5.0


def test_reports(tmp_path: Path) -> None:
    made = results(
        task("xnli_en", [100.0, 0.0] * 50), task("piqa", [100.0, 0.0]), tasks=["xnli"], loaded={"dtype": "x"}
    )
    write_report(tmp_path / "report.md", made)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| xnli\\_en | 50.0 | 9.6 | 54.6 |" in page and "| piqa | 50.0 |" in page
    assert all(re.sub(r"([_*])", r"\\\1", note) in page for note in facts(made)) and "dtype=x" in page
    write_report(tmp_path / "report.html", made)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>xnli_en</td><td>50.0</td>" in page and page.count("<svg") == page.count("</svg>") == 2
    assert "http" not in re.sub(r"http://(www.w3.org|purl.org|creativecommons.org)", "", page.partition("<svg")[0])
    with pytest.raises(OptionError, match=r"ends in \.md or \.html"):
        write_report(tmp_path / "report.pdf", made)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "none" / "report.md", made)


def test_two_runs_are_compared_question_by_question() -> None:
    before = results(task("xnli_en", [100.0] * 30 + [0.0] * 10), task("tydiqa_en", [10.0, 20.0, 30.0], "f1"), dtype="a")
    after = results(task("xnli_en", [0.0] * 10 + [100.0] * 30), task("tydiqa_en", [11.0, 22.0, 33.5], "f1"), dtype="b")
    rows, notes = comparison_table(before, after)
    # ten better and ten worse; all three better, whose differences are 1, 2 and 3.5
    assert rows[1] == ["xnli_en", "75.00", "75.00", "+0.00", "1.000", "40"]
    assert rows[2] == ["tydiqa_en", "20.00", "22.17", "+2.17", "0.096", "3"]
    assert "options, dtype: a and b" in notes
    better = results(task("xnli_en", [100.0] * 38 + [0.0] * 2))
    # eight better and none worse: 2 * 0.5 ** 8
    rows, notes = comparison_table(before, better)
    assert rows[1] == ["xnli_en", "75.00", "95.00", "+20.00 *", "0.008", "40"]
    assert notes[-1] == "only in one of them: tydiqa_en"


def test_translations_are_compared_by_resampling() -> None:
    texts = [f"Das ist der Satz Nummer {number} von vielen Sätzen." for number in range(20)]
    samples = [Sample(number, 0.0, text, [text]) for number, text in enumerate(texts)]
    made = task("wmt20_en-de", [0.0] * 20, "bleu")
    first = results(dataclasses.replace(made, value=100.0, samples=samples))
    changed = [dataclasses.replace(each, output="Etwas ganz anderes steht hier, sonst nichts.") for each in samples]
    second = results(dataclasses.replace(made, value=1.0, samples=changed))
    assert comparison_table(first, second)[0][1][3:5] == ["-99.00 *", "0.001"]
    assert comparison_table(first, first)[0][1][3:5] == ["+0.00", "1.000"]


def test_runs_that_cannot_be_compared(polylm: Any, tmp_path: Path) -> None:
    one, two = results(task("xnli_en", [0.0] * 3)), results(task("xnli_en", [0.0] * 4))
    with pytest.raises(InputError, match="xnli_en has 3 questions in the first file and 4 in the second"):
        comparison_table(one, two)
    with pytest.raises(InputError, match="no task in common"):
        comparison_table(one, results(task("xnli_zh", [0.0])))
    files = tmp_path / "a.json", tmp_path / "b.json"
    write_results(files[0], one)
    files[1].write_text(json.dumps({"format": 0}), encoding="utf-8")
    found = polylm("eval", "--compare", *map(str, files))
    assert found.exit_code == 2 and "has format 0, and this version reads format 1" in found.errors
    same = polylm("eval", "--compare", str(files[0]), str(files[0]))
    assert same.exit_code == 0 and re.search(r"xnli_en +0\.00 +0\.00 +\+0\.00 +1\.000", same.output)
