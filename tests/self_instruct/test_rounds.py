"""Whole runs against recorded answers and against our own server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.self_instruct.tasks import Task, numbered
from modelscope_polylm.training.prepare import DataReport, own_data_set, read_data
from tests.commands import Outcome
from tests.self_instruct.endpoints import recorded, refusal
from tests.self_instruct.recordings import INSTRUCTIONS, KEPT_OUTPUT, SEEDS, good_answer, translated, write_seeds
from tests.serve.running import serving
from tests.snapshots import build_snapshot

Polylm = Callable[..., Outcome]


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    return write_seeds(tmp_path / "seeds.jsonl")


def arguments(url: str, seeds: Path, out: Path, *more: str, languages: str = "de") -> list[str]:
    """A short run: two rounds of three and four prompts."""
    short = ["--rounds", "2", "--first-prompts", "3", "--prompts", "4"]
    files = ["--seeds", str(seeds), "--out", str(out)]
    return ["self-instruct", "--endpoint", url, "--model", "m", "--languages", languages, *files, *short, *more]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def journal(out: Path) -> list[dict[str, Any]]:
    return rows(out.with_name(f"{out.name}.journal.jsonl"))


def test_a_run(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    with recorded(good_answer) as endpoint:
        done = polylm(*arguments(endpoint.url, seeds, out, "--report", str(tmp_path / "report.json")))
    assert done.exit_code == 0, done.errors
    kept = rows(out)
    assert {"instruction", "input", "output", "language"} == set(kept[0])
    instructions = [row["instruction"] for row in kept]
    assert len(set(instructions)) == len(instructions) <= len(INSTRUCTIONS)
    report = json.loads((tmp_path / "report.json").read_text())["de"]
    assert (report["prompts"], report["seeds"], report["kept"]) == (7, 4, len(kept))
    assert report["kept"] + sum(report["dropped"].values()) == 7 * 5
    assert report["dropped"] == {"resembles an earlier task": 35 - len(kept)}
    assert "de, round 2: 4/4 answers" in done.errors
    assert f"{35 - len(kept):,}  de: resembles an earlier task" in done.output


def test_prompts_show_two_seeds_and_a_task_of_an_earlier_round(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    with recorded(good_answer) as endpoint:
        assert polylm(*arguments(endpoint.url, seeds, out, "--concurrency", "1")).exit_code == 0
    asked = [prompt for prompt in endpoint.prompts if not translated(prompt)]
    of_seeds = {task.instruction for task in SEEDS.values()}
    of_first_round = {task["instruction"] for row in journal(out)[1:] if row["round"] == 1 for task in row["kept"]}
    for number, prompt in enumerate(asked):
        shown = [line.partition(": ")[2] for line in prompt.splitlines() if ". Instruction: " in line]
        assert len(set(shown)) == 3
        assert len(of_seeds & set(shown)) == (3 if number < 3 else 2)
        assert len(of_first_round & set(shown)) == (0 if number < 3 else 1)
        assert "in German." in prompt and "the following 17 tasks" in prompt
    assert endpoint.requests[0]["model"] == "m" and endpoint.requests[0]["temperature"] == 1.0
    assert "max_tokens" not in endpoint.requests[0]
    assert any(KEPT_OUTPUT in prompt for prompt in asked)  # where "def eins" was translated


def test_seeds_in_the_language_are_taken_as_they_are(polylm: Polylm, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.json"
    own = [{"instruction": task.instruction, "output": task.output, "language": "de"} for task in SEEDS.values()]
    seeds.write_text(json.dumps(own), encoding="utf-8")
    with recorded(good_answer) as endpoint:
        done = polylm(*arguments(endpoint.url, seeds, tmp_path / "out.jsonl", "--rounds", "1"))
    assert done.exit_code == 0, done.errors
    assert len(endpoint.prompts) == 3


def test_the_output_is_training_data(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "tasks.jsonl", tmp_path / "train.jsonl"
    with recorded(good_answer) as endpoint:
        assert polylm(*arguments(endpoint.url, seeds, out)).exit_code == 0
    done = polylm("data", f"alpaca={out}", "--out", str(made))
    assert done.exit_code == 0, done.errors
    first, message = rows(out)[0], rows(made)[0]
    assert message["language"] == "de"
    assert [each["content"] for each in message["messages"]] == [first["instruction"], first["output"]]
    assert len(rows(made)) == len(rows(out))
    assert len(list(read_data([own_data_set(out)], DataReport()))) == len(rows(out))


def test_every_reason_is_reported(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    good = Task("Wie funktioniert ein Kompass?", "", "Er zeigt nach Norden.")
    bad = [
        Task("Fasse die Seite zusammen.", "https://example.org", "Kurz."),
        Task("Wie funktioniert denn ein Kompass?", "", "So."),
        Task("Korrigiere den Satz mit dem Fehler.", "Korrigiere diesen Satz mit dem Fehler", "Satz"),
        Task("Write a poem about the spring in the mountains.", "", "Spring"),
        Task("", "", "Nichts"),
    ]
    inside = Task("Übersetze „Guten Tag“ ins Englische.", "Guten Tag", "Good day")
    text = "\n".join(numbered(task, number) for number, task in enumerate([good, *bad, inside], start=4))

    def answer(prompt: str, number: int) -> str:
        return good_answer(prompt) if translated(prompt) else f"{text}\n11. Instruction: Unvollständig"

    out = tmp_path / "tasks.jsonl"
    with recorded(answer) as endpoint:
        limits = ["--rounds", "1", "--first-prompts", "1"]
        done = polylm(*arguments(endpoint.url, seeds, out, *limits, "--json"))
    counts = json.loads(done.output)["de"]
    assert counts["dropped"] == {
        "a link": 1,
        "resembles an earlier task": 1,
        "the input repeats the instruction": 1,
        "in another language (en)": 1,
        "empty instruction": 1,
        "no input": 1,
    }
    assert (counts["kept"], counts["emptied"]) == (2, 1)
    assert [row["input"] for row in rows(out)] == ["", ""]
    dropped = [each for row in journal(out)[1:] for each in row["dropped"]]
    assert {"reason": "a link", "text": "Fasse die Seite zusammen."} in dropped


def test_the_last_task_of_a_cut_answer_is_dropped(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    own = [{"instruction": task.instruction, "output": "x", "language": "de"} for task in SEEDS.values()]
    seeds.write_text(json.dumps(own), encoding="utf-8")
    with recorded(good_answer, finish_reason="length") as endpoint:
        limits = ["--rounds", "1", "--max-tokens", "99"]
        done = polylm(*arguments(endpoint.url, seeds, tmp_path / "out.jsonl", *limits, "--json"))
    assert json.loads(done.output)["de"]["dropped"]["cut off by the limit of tokens"] == 3
    assert {request["max_tokens"] for request in endpoint.requests} == {99}


def test_a_killed_run_goes_on_to_the_same_tasks(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    reached, over = threading.Event(), threading.Event()

    def slow(prompt: str, number: int) -> str:
        if number == 4 + 3 + 2:  # the seeds, the first round, two answers of the second
            reached.set()
            over.wait(60)
        return good_answer(prompt)

    with recorded(slow) as endpoint:
        command = arguments(endpoint.url, seeds, killed, "--concurrency", "1")
        process = subprocess.Popen([sys.executable, "-m", "modelscope_polylm", *command], stderr=subprocess.DEVNULL)
        assert reached.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        over.set()
        with killed.with_name("killed.jsonl.journal.jsonl").open("a") as file:
            file.write('{"language": "de", "rou')  # as if it had died while it wrote
        assert polylm(*command).exit_code == 0
        twice = [prompt for prompt, count in Counter(endpoint.prompts).items() if count > 1]
        assert len(twice) == 1
    with recorded(good_answer) as endpoint:
        assert polylm(*arguments(endpoint.url, seeds, whole)).exit_code == 0
    assert killed.read_bytes() == whole.read_bytes()


def test_a_finished_run_asks_for_nothing_more(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    with recorded(good_answer) as endpoint:
        assert polylm(*arguments(endpoint.url, seeds, out)).exit_code == 0
        before, asked = out.read_bytes(), len(endpoint.prompts)
        assert polylm(*arguments(endpoint.url, seeds, out)).exit_code == 0
        assert (out.read_bytes(), len(endpoint.prompts)) == (before, asked)
        assert polylm(*arguments(endpoint.url, seeds, out, "--rounds", "3")).exit_code == 0
        assert len(endpoint.prompts) == asked + 4


def test_answers_are_filtered_in_the_order_of_their_prompts(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    def uneven(prompt: str, number: int) -> str:
        time.sleep(0.2 if number % 3 == 0 else 0)
        return good_answer(prompt)

    outputs = tmp_path / "one.jsonl", tmp_path / "eight.jsonl"
    for out, concurrency in zip(outputs, ("1", "8"), strict=True):
        with recorded(uneven) as endpoint:
            assert polylm(*arguments(endpoint.url, seeds, out, "--concurrency", concurrency)).exit_code == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_an_endpoint_that_goes_away_leaves_what_came(
    polylm: Polylm, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscope_polylm.self_instruct.endpoint.RETRIES", 0)
    out = tmp_path / "tasks.jsonl"

    def failing(prompt: str, number: int) -> str | tuple[int, str]:
        return good_answer(prompt) if number < 4 + 3 + 1 else (503, refusal("overloaded"))

    with recorded(failing) as endpoint:
        done = polylm(*arguments(endpoint.url, seeds, out, "--concurrency", "1"))
    assert done.exit_code == 1
    assert f"{out} has {len(rows(out))} tasks; the same command goes on from there." in done.errors
    assert "overloaded" in done.errors
    assert len(rows(out)) > 5
    done = polylm(*arguments(endpoint.url, seeds, out))  # nothing listens there any more
    assert done.exit_code == 1
    assert "does not answer" in done.errors and len(rows(out)) > 5


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ((401, refusal("Incorrect API key")), "Incorrect API key"),
        ((404, refusal("The model 'm' does not exist")), "does not exist"),
        ((200, "<html>Welcome</html>"), "mostly it ends in /v1"),
        ((200, "{}"), "mostly it ends in /v1"),
        ((200, "{nonsense"), "does not answer"),
    ],
)
def test_what_is_no_endpoint(polylm: Polylm, seeds: Path, tmp_path: Path, response: tuple[int, str], said: str) -> None:
    out = tmp_path / "tasks.jsonl"
    with recorded(lambda prompt, number: response) as endpoint:
        done = polylm(*arguments(endpoint.url, seeds, out))
    assert done.exit_code == 1
    assert said in done.errors and len(done.errors.splitlines()) == 1
    assert out.read_text() == ""


def test_nonsense_ends_a_language_and_leaves_the_others(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"

    def answer(prompt: str, number: int) -> str:
        return good_answer(prompt) if "German" in prompt else "กขค ???"

    with recorded(answer) as endpoint:
        done = polylm(*arguments(endpoint.url, seeds, out, languages="th,de"))
    assert done.exit_code == 0
    assert "Warning: th: only 0 of 4 seeds were translated: no task in the answer, 'กขค ???'." in done.errors
    assert {row["language"] for row in rows(out)} == {"de"}
    assert "4  th, seed: no task in the answer" in done.output


def test_a_round_that_brought_nothing_is_asked_for_again(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out, is_fixed = tmp_path / "tasks.jsonl", threading.Event()

    def answer(prompt: str, number: int) -> str:
        return good_answer(prompt) if translated(prompt) or is_fixed.is_set() else "???"

    with recorded(answer) as endpoint:
        assert polylm(*arguments(endpoint.url, seeds, out)).exit_code == 1
        is_fixed.set()
        assert polylm(*arguments(endpoint.url, seeds, out)).exit_code == 0
    assert len(endpoint.prompts) == 4 + 3 + 3 + 4
    assert len(rows(out)) > 10


def test_a_prompt_that_is_refused_is_counted(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    def answer(prompt: str, number: int) -> str | tuple[int, str]:
        return (400, refusal("content filter")) if number == 5 else good_answer(prompt)

    with recorded(answer) as endpoint:
        done = polylm(*arguments(endpoint.url, seeds, tmp_path / "out.jsonl", "--json"))
    assert done.exit_code == 0
    assert json.loads(done.output)["de"]["dropped"]["the endpoint refused the prompt"] == 1


def test_our_own_server_with_a_model_that_writes_nonsense(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    folder = build_snapshot(
        tmp_path / "model", tokenizer=(TINY_FOLDER / "tokenizer.model").read_bytes(), positions=2048
    )
    own = [{"instruction": task.instruction, "output": "x", "language": "de"} for task in SEEDS.values()]
    seeds.write_text(json.dumps(own), encoding="utf-8")
    with serving(TextGenerator.load(folder, device="cpu", release="assistant-13b")) as server:
        done = polylm(
            *arguments(f"{server.url}/v1", seeds, out, "--max-tokens", "40"), "--model", "tiny", "--first-prompts", "2"
        )
    assert done.exit_code == 1
    assert "Warning: de: round 1 brought nothing to keep, and was the last" in done.errors
    assert "Error: No task was kept" in done.errors
    assert out.read_text() == ""
    entries = journal(out)[1:]
    assert len(entries) == 2
    assert all(entry["dropped"] and not entry["kept"] for entry in entries)
    assert {each["reason"] for entry in entries for each in entry["dropped"]} == {"no task in the answer"}
    assert all(each["text"] for entry in entries for each in entry["dropped"])


def test_our_own_server_refuses_prompts_that_are_longer_than_its_context(
    polylm: Polylm, tiny: TextGenerator, seeds: Path, tmp_path: Path
) -> None:
    seeds.write_text(json.dumps([{"instruction": f"Nenne {n}.", "output": "x", "language": "de"} for n in range(3)]))
    with serving(tiny) as server:
        done = polylm(*arguments(f"{server.url}/v1", seeds, tmp_path / "out.jsonl"), "--model", "tiny")
    assert done.exit_code == 1
    assert "the endpoint refused the prompt" in done.errors and "fit next to the answer" in done.errors


def test_the_key_of_the_environment_is_sent(
    polylm: Polylm, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with recorded(good_answer) as endpoint:
        assert polylm(*arguments(endpoint.url, seeds, tmp_path / "out.jsonl")).exit_code == 0
    assert set(endpoint.keys) == {"Bearer secret"}
    assert "secret" not in "".join(file.read_text(encoding="utf-8") for file in tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--languages", "de,xx"], "'xx' is none of PolyLM's 18 languages"),
        (["--languages", "sw"], "'sw' is none of PolyLM's 18 languages"),
        (["--languages", "Geman"], "did you mean German?"),
        (["--endpoint", "127.0.0.1:8000"], "must begin with http:// or https://"),
        (["--rounds", "0"], "rounds=0"),
        (["--tasks", "1000"], "tasks=1000"),
        (["--seeds", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_wrong_flags(polylm: Polylm, seeds: Path, tmp_path: Path, more: list[str], said: str) -> None:
    done = polylm(*arguments("http://127.0.0.1:9/v1", seeds, tmp_path / "out.jsonl"), *more)
    assert done.exit_code == 2
    assert said in done.errors
    assert not (tmp_path / "out.jsonl").exists()


def test_a_journal_of_another_run_is_refused(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    with recorded(good_answer) as endpoint:
        assert polylm(*arguments(endpoint.url, seeds, out)).exit_code == 0
        before = out.read_bytes()
        done = polylm(*arguments(endpoint.url, seeds, out), "--model", "other", "--seed", "1")
        assert done.exit_code == 2
        assert "is of a run with another model and seed: give what it had, or another --out." in done.errors
        assert out.read_bytes() == before
        out.with_name("tasks.jsonl.journal.jsonl").write_text('{"model": "m"}\nnonsense\n')
        done = polylm(*arguments(endpoint.url, seeds, out))
        assert done.exit_code == 2 and "is no journal of this command" in done.errors


def test_a_second_run_of_the_same_output_is_refused(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    found: list[Outcome] = []
    started, over = threading.Event(), threading.Event()

    def waiting(prompt: str, number: int) -> str:
        started.set()
        over.wait(60)
        return good_answer(prompt)

    with recorded(waiting) as endpoint:
        command = arguments(endpoint.url, seeds, out)
        process = subprocess.Popen([sys.executable, "-m", "modelscope_polylm", *command], stderr=subprocess.DEVNULL)
        assert started.wait(60)
        found.append(polylm(*command))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        over.set()
    assert found[0].exit_code == 2 and "is in use" in found[0].errors


def test_tasks_of_an_earlier_process_are_compared_with(polylm: Polylm, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    same = numbered(Task("Wie funktioniert ein Kompass?", "", "Er zeigt nach Norden."), 4)

    def answer(prompt: str, number: int) -> str:
        return good_answer(prompt) if translated(prompt) else same

    with recorded(answer) as endpoint:
        limits = ["--rounds", "1", "--first-prompts"]
        assert polylm(*arguments(endpoint.url, seeds, out, *limits, "1")).exit_code == 0
        done = polylm(*arguments(endpoint.url, seeds, out, *limits, "2"), "--json")
    assert json.loads(done.output)["de"]["dropped"] == {"resembles an earlier task": 1}
    assert len(rows(out)) == 1
