"""`polylm eval`: what it prints and keeps, how it goes on after an interruption, and bad input at each door."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import InputError
from modelscope_polylm.evaluation.harness import EvaluationTask, _harness_result, run_task
from modelscope_polylm.evaluation.results import read_results
from modelscope_polylm.evaluation.run import Evaluation
from modelscope_polylm.evaluation.task_data import task_groups
from modelscope_polylm.generator import TextGenerator
from tests.commands import Outcome
from tests.evaluation.published import write_table

Polylm = Callable[..., Outcome]
COLUMNS = ("language", "gold_label", "sentence1", "sentence2")


def test_all_tasks_of_a_base_model(polylm: Polylm, package: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "results.json"
    chosen = ["--tasks", "tydiqa,mtg_tg", "--tasks", "wmt20,xwinograd", "--languages", "en,en-de,en-ja", "--no-chat"]
    done = polylm("eval", str(package), *chosen, "--data", str(data), "--out", str(out), "--dtype", "float32")
    assert done.exit_code == 0, done.errors
    results = read_results(out)
    by_name = {task.task: task for task in results.tasks}
    assert by_name["xwinograd_en"].shots == 0 and by_name["tydiqa_en"].shots == 1
    assert by_name["xwinograd_en"].cut == 1 and by_name["xwinograd_en"].rows == 4
    assert by_name["tydiqa_en"].cut == 2  # the example before a question is as long as the context
    assert "tok:ja-mecab" in str(by_name["wmt20_en-ja"].signature)
    assert by_name["wmt20_en-de"].samples[1].reference in ("[1]", ["[1]"])
    assert all("\n" not in str(sample.output) for task in results.tasks for sample in task.samples)
    assert "xwinograd_en" in done.output and "lost their beginning" in done.errors
    assert [file.name for file in out.parent.iterdir()] == ["results.json"]


def test_a_tuned_model_is_asked_by_messages_without_examples(generator: TextGenerator, data: Path) -> None:
    evaluation = Evaluation(["tydiqa"], ["ko"], data=data)
    (task,) = evaluation.plan(generator)
    assert task.chat and task.shots == 0
    asked: list[str] = []
    original = generator.reply_each

    def listening(prompts: Any, at_once: int | None = None) -> Any:
        kept = list(prompts)
        asked.extend(prompt.text for prompt, _ in kept)
        return original(iter(kept), at_once)

    generator.reply_each = listening  # type: ignore[method-assign]
    try:
        run_task(generator, task, data, None, None, lambda name, done, count: None)
    finally:
        del generator.reply_each  # type: ignore[method-assign]
    assert asked == [
        "<|user|>\nRead the context and answer the question in one or a few words in Korean.\nContext (Korean): "
        "서울은 대한민국의 수도이다.\nQuestion (Korean): 대한민국의 수도는 어디인가?\nAnswer:\n<|assistant|>\n"
    ]


class Stopped(Exception):
    pass


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """150 questions of XNLI."""
    source, words = random.Random(1), "the cat sat on a mat in Berlin when it rains and he sleeps"

    def sentence() -> str:
        return " ".join(source.choices(words.split(), k=source.randint(3, 12)))

    rows = [("en", "neutral", sentence(), sentence()) for _ in range(150)]
    write_table(tmp_path / "many" / "xnli.test.tsv", COLUMNS, rows)
    return tmp_path / "many"


def test_goes_on_after_an_interruption(
    generator: TextGenerator, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscope_polylm.evaluation.language_model.REQUESTS_AT_ONCE", 100)
    evaluation, out, scored = Evaluation(["xnli"], ["en"], data=many), tmp_path / "results.json", [0]
    whole = evaluation.run(generator, None, lambda name, done, count: None)

    def stop(name: str, done: int, count: int) -> None:
        if done >= count // 2:
            raise Stopped

    with pytest.raises(Stopped):
        evaluation.run(generator, out, stop)
    assert list(tmp_path.glob("results.json.*")) and not out.exists()
    original = generator.log_likelihood

    def counting(contexts: Any, continuations: Any, best: int = 0) -> Any:
        scored[0] += len(contexts)
        return original(contexts, continuations, best)

    generator.log_likelihood = counting  # type: ignore[method-assign]
    try:
        again = evaluation.run(generator, out, lambda name, done, count: None)
    finally:
        del generator.log_likelihood  # type: ignore[method-assign]
    assert 0 < scored[0] <= 350
    assert again.tasks == whole.tasks == read_results(out).tasks
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["results.json"]


@pytest.mark.slow
def test_goes_on_after_a_kill(package: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "modelscope_polylm", "eval", str(package), "--data", str(many), "--tasks", "xnli"]
    command += ["--languages", "en", "--out", str(out), "--dtype", "float32"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(file.stat().st_size > 4096 for file in tmp_path.glob("results.json.*")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert read_results(out).tasks[0].rows == 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "xnlli"], "no task 'xnlli': did you mean xnli?"),
        (["--tasks", "hellaswaq"], "did you mean hellaswag?"),
        (["--tasks", "xnli", "--languages", "eng"], "has the language 'eng'"),
        (["--tasks", "xnli", "--languages", "ja"], "has the language 'ja'"),
        (["--tasks", "xnli", "--languages", "de"], "has no rows for XNLI in 'de'"),
        (["--tasks", "xcopa", "--languages", "vi"], "data/vi/test.vi.jsonl"),
        (["--tasks", "xnli", "--limit", "0"], "greater than or equal to 1"),
        (["--tasks", "xnli", "--shots", "-1"], "greater than or equal to 0"),
        (["--tasks", "xnli", "--languages", "en", "--backend", "transformers"], "does not score texts"),
        (["--tasks", "xnli", "--languages", "en", "--out", "/proc/results.json"], "cannot be written"),
    ],
)
def test_wrong_flags(polylm: Polylm, data: Path, arguments: list[str], message: str) -> None:
    done = polylm("eval", "tiny", "--data", str(data), *arguments)
    assert done.exit_code not in (0, 1), done.output
    assert message in " ".join(done.errors.split())
    assert "Traceback" not in done.errors


def test_a_base_model_is_not_asked_by_messages(package: Path) -> None:
    base = TextGenerator.load(package, device="cpu", prompt_format="base")
    with pytest.raises(InputError, match="has no chat format: leave out --chat"):
        Evaluation(["tydiqa"], chat=True).plan(base)
    assert all(not task.chat and task.shots == 1 for task in Evaluation(["tydiqa", "wmt20"]).plan(base))
    base.snapshot.prompt_format = None
    with pytest.raises(InputError, match="its release is not known"):
        Evaluation(["tydiqa"]).plan(base)


def test_without_a_folder_of_data(polylm: Polylm) -> None:
    done = polylm("eval", "tiny", "--tasks", "xnli")
    assert done.exit_code == 2
    assert "nothing is downloaded: pass --data FOLDER with xnli.test.tsv" in done.errors
    assert "no folder" in polylm("eval", "tiny", "--data", "/nowhere").errors


BROKEN = {
    "xnli": ("xnli.test.tsv", "language\tgold_label\tsentence1\tsentence2\nen\tmaybe\ta\tb\n", "maybe"),
    "pawsx": ("en/test_2k.tsv", "id\tsentence1\tlabel\n1\ta\t1\n", "sentence2"),
    "xwinograd": ("test/en.jsonl", '{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}\n', "read"),
    "xcopa": ("data/it/test.it.jsonl", '{"premise": "a.", "choice1": "", "choice2": "b", "question": "cause", '
              '"label": 0}\n', "a choice is empty"),
    "tydiqa": ("tydiqa-goldp-v1.1-dev.json", '{"data": 1}', "cannot be read"),
    "mtg_tg": ("tg.en.jsonl", '{"document": "a"}\n', "target"),
    "wmt20": ("newstest2020-ende-src.en.sgm", '<seg id="1">a</seg>\n', "newstest2020-ende-ref.de.sgm"),
}  # fmt: skip


@pytest.mark.parametrize("group", BROKEN)
def test_damaged_data(generator: TextGenerator, tmp_path: Path, group: str) -> None:
    name, text, message = BROKEN[group]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    language = {"xcopa": "it", "wmt20": "en-de"}.get(group, "en")
    with pytest.raises(InputError, match=message) as caught:
        task_groups()[group].questions(tmp_path, language)
    assert name.rpartition("/")[2][:12] in str(caught.value)


def test_translations_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "wmt20.en-de.src").write_text("one\u2028line\ntwo\n", encoding="utf-8")
    (tmp_path / "wmt20.en-de.ref").write_text("eins\nzwei\n", encoding="utf-8")
    first, second = task_groups()["wmt20"].questions(tmp_path, "en-de")
    assert first["context"].startswith("one\u2028line\nTranslate") and second["references"] == ["zwei"]
    (tmp_path / "wmt20.en-de.ref").write_text("eins\n", encoding="utf-8")
    with pytest.raises(InputError, match="has 2 sentences, but"):
        task_groups()["wmt20"].questions(tmp_path, "en-de")


def test_entities_are_not_asked_for(data: Path) -> None:
    first = task_groups()["wmt20"].questions(data, "en-de")[0]
    assert first["context"].startswith("Oil falls & rises\n")
    assert first["references"] == ["Öl fällt &amp; steigt"]


def test_two_right_answers_are_kept_once_each(data: Path) -> None:
    first = task_groups()["tydiqa"].questions(data, "en")[0]
    assert first["references"] == ["four", "four quarters"]


def test_the_harness_keeps_its_own_tasks(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = Evaluation(["hellaswag"]).plan(generator)
    assert task == EvaluationTask("hellaswag", None, shots=None)


def test_results_of_the_harness_s_own_tasks() -> None:
    task = EvaluationTask("some_task", None, shots=None)
    samples = [{"doc_id": 0, "exact_match": 1.0}, {"doc_id": 1, "exact_match": 0.0}]
    values = {"alias": "some_task", "exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"}
    found = {"results": {"some_task": values}, "n-shot": {"some_task": 2}}
    result = _harness_result(task, found, samples, 1)
    assert (result.metric, result.value, result.shots, result.rows, result.cut) == ("acc", 50.0, 2, 2, 1)
    assert [sample.score for sample in result.samples] == [100.0, 0.0]
    perplexity = {"results": {"some_task": {"word_perplexity,none": 21.0}}, "n-shot": {"some_task": 0}}
    with pytest.raises(InputError, match="has none of the metrics acc, exact_match, f1"):
        _harness_result(task, perplexity, samples, 0)


def test_without_the_harness(polylm: Polylm, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = polylm("eval", "tiny", "--data", str(data), "--tasks", "xcopa", "--languages", "it")
    assert done.exit_code != 0 and "lm-evaluation-harness runs the tasks: pip install" in done.errors
