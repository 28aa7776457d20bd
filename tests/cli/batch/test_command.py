"""`polylm batch` in real processes: kills, full disks, terminals, pipes."""

from __future__ import annotations

import csv
import gzip
import json
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow.parquet
import pytest

from tests.cli.batch.test_job import lines, write_lines
from tests.processes import POLYLM, environment, run_polylm, terminal
from tests.small_disk import FILLER, make_room, small_disk

OPTIONS = ("--device", "cpu", "--max-new-tokens", "8", "--num-beams", "2", "--batch-size", "2")


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [*POLYLM, "batch", str(source), str(out), *OPTIONS]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)


def wait_for_bytes(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    while process.poll() is None and (not out.exists() or out.stat().st_size < count):
        time.sleep(0.002)


def killed_and_resumed(folder: Path, kills: int, rows: int) -> None:
    """Kill a batch at random points of its output; the same command has to make it whole."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the points: {seed}")
    source, whole, out = write_lines(folder / "in.txt", rows), folder / "whole.jsonl", folder / "out.jsonl"
    assert run_polylm("batch", str(source), str(whole), *OPTIONS).returncode == 0
    chosen, last = random.Random(seed), whole.stat().st_size * 9 // 10  # so that no run ends before its kill
    for point in sorted(chosen.randrange(last) for _ in range(kills)):
        process = start(source, out)
        wait_for_bytes(process, out, point)
        time.sleep(chosen.random() / 50)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert whole.read_bytes().startswith(out.read_bytes() if out.exists() else b"")
    assert run_polylm("batch", str(source), str(out), *OPTIONS).returncode == 0
    assert out.read_bytes() == whole.read_bytes()


def test_killed_at_two_points(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, kills=2, rows=200)


@pytest.mark.slow
def test_killed_at_ten_points(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, kills=10, rows=1500)


def test_interrupt_says_how_far_it_got(tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.txt", 3000), tmp_path / "out.jsonl"
    process = start(source, out)
    wait_for_bytes(process, out, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    count = len(lines(out))
    assert errors.decode() == (f"Interrupted: {count} lines are written, and the same command goes on after them.\n")
    assert 0 < count < 3000


def test_full_disk_and_then_space(tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.txt", 100), tmp_path / "out.jsonl"

    def no_more_than_4_kilobytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = run_polylm("batch", str(source), str(out), *OPTIONS, preexec_fn=no_more_than_4_kilobytes)
    assert done.returncode == 1
    complete = out.read_bytes().count(b"\n")
    assert 0 < complete < 100
    assert done.stderr.startswith(f"Error: {out} cannot be written: File too large. {complete} lines are complete")
    assert len(done.stderr.splitlines()) == 1
    done = run_polylm("batch", str(source), str(out), *OPTIONS)
    assert done.returncode == 0
    assert [record["line"] for record in lines(out)] == list(range(1, 101))


@pytest.mark.slow
def test_disk_that_is_really_full(tmp_path: Path) -> None:
    source, whole = write_lines(tmp_path / "in.txt", 100), tmp_path / "whole.jsonl"
    assert run_polylm("batch", str(source), str(whole), *OPTIONS).returncode == 0
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        out = disk / "out.jsonl"
        (disk / FILLER).write_bytes(bytes(56 << 10))  # two pages are left: settings, answers
        done = run_polylm("batch", str(source), str(out), *OPTIONS)
        assert done.returncode == 1
        assert f"{out} cannot be written: No space left on device. " in done.stderr
        assert "64 lines are complete" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        make_room(disk)
        assert run_polylm("batch", str(source), str(out), *OPTIONS).returncode == 0
        assert out.read_bytes() == whole.read_bytes()


def test_reader_goes_away(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.txt", 100)
    command = f"{' '.join(POLYLM)} batch {source} - {' '.join(OPTIONS)} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), timeout=120, check=False)
    assert json.loads(done.stdout)["line"] == 1
    assert done.stderr == b""


@pytest.mark.parametrize("columns", [20, 100])
def test_bar_on_a_terminal(tmp_path: Path, columns: int) -> None:
    source = write_lines(tmp_path / "in.txt", 40)
    with terminal("batch", str(source), str(tmp_path / "out"), *OPTIONS, columns=columns) as screen:
        assert screen.wait() == 0
        assert "100%" in screen.screen
        assert ("40/40" in screen.screen and "tokens/s" in screen.screen) or columns == 20


def test_quiet_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Beijing\nParis\n")
    done = run_polylm("batch", str(tmp_path / "in.txt"), str(tmp_path / "out"), *OPTIONS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_formats_and_summary(polylm: Callable[..., Any], tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("id,body\na,Beijing is the capital of China.\nb,\n", encoding="utf-8")
    template = "{text}\nTranslate this sentence from English to French."
    arguments = ("--column", "body", "--template", template, "--chat", "--json", "--device", "cpu")
    outcome = polylm("batch", str(source), str(out), *arguments)
    assert outcome.exit_code == 0
    summary = json.loads(outcome.output)
    assert (summary["lines"], summary["answered"], summary["errors"]) == (2, 2, 0)
    first = lines(out)[0]
    assert (first["line"], first["id"], first["text"]) == (1, "a", "Pékin est la capitale de la Chine.")


def test_errors_are_counted(polylm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"Beijing\n\n\xff\n")
    outcome = polylm("batch", str(tmp_path / "in.txt"), str(tmp_path / "out"), *OPTIONS)
    assert (outcome.exit_code, outcome.output) == (0, "")
    assert outcome.errors == "2 of 3 lines hold an error.\n"


QUESTION = "Rome is the capital of Italy.\nTranslate this sentence from English to German."
ANSWER = "Rom ist die Hauptstadt von Italien."


def answered(polylm: Callable[..., Any], source: Path, *arguments: str) -> list[dict[str, Any]]:
    """The records of a batch whose rows are chat messages."""
    out = source.with_name("answers.jsonl")
    outcome = polylm("batch", str(source), str(out), "--chat", "--num-beams", "1", "--device", "cpu", *arguments)
    assert outcome.exit_code == 0, outcome.errors
    return lines(out)


@pytest.mark.parametrize("name", ["in.json", "in.jsonl", "in.txt", "in"])
@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_are_rows(polylm: Callable[..., Any], tmp_path: Path, name: str, indent: int | None) -> None:
    (tmp_path / name).write_text(json.dumps([{"text": QUESTION, "id": 7}, {"text": "hello"}], indent=indent))
    records = answered(polylm, tmp_path / name)
    assert [(record["line"], record.get("id")) for record in records] == [(1, 7), (2, None)]
    assert records[0]["text"] == ANSWER


def test_an_object_of_a_data_set(polylm: Callable[..., Any], tmp_path: Path) -> None:
    row = {"instruction": QUESTION.split("\n")[1], "input": QUESTION.split("\n")[0], "output": ""}
    (tmp_path / "in.json").write_text(json.dumps([row], indent=2))
    records = answered(polylm, tmp_path / "in.json", "--template", "{input}\n{instruction}")
    assert records[0]["text"] == ANSWER
    outcome = polylm("batch", str(tmp_path / "in.json"), str(tmp_path / "out.jsonl"), "--device", "cpu")
    assert (outcome.exit_code, outcome.errors) == (1, "1 of 1 lines hold an error.\n")
    assert "no 'text'; it has 'instruction', 'input', 'output'" in lines(tmp_path / "out.jsonl")[0]["error"]


def test_every_format_gives_the_same_answers(polylm: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        {"id": number, "text": QUESTION.replace("German", name)} for number, name in enumerate(("German", "Polish"))
    ]
    csv_text = "id;text\r\n" + "".join(f'{row["id"]};"{row["text"]}"\r\n' for row in rows)
    book = openpyxl.Workbook()
    for cells in (["id", "text"], *([row["id"], row["text"]] for row in rows)):
        book.active.append(cells)
    book.save(tmp_path / "in.xlsx")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text(csv_text.replace("\n", "\r\n").replace("\r\r", "\r"), newline="")
    (tmp_path / "table.txt").write_text(csv_text, newline="")
    (tmp_path / "in.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    expected = [ANSWER, "Rzym to stolica Włoch."]
    for name in ("in.xlsx", "in.parquet", "in.csv", "table.txt", "in.json.gz"):
        records = answered(polylm, tmp_path / name, "--overwrite")
        assert [record["text"] for record in records] == expected, name
        assert [str(record["id"]) for record in records] == ["0", "1"]


def test_rows_as_arrow_writes_them(polylm: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": QUESTION, "messages": None},
        {"id": 2, "text": None, "messages": [{"role": "user", "content": QUESTION}]},
        {"id": 3, "messages": []},
    ]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    records = answered(polylm, tmp_path / "in.jsonl")
    assert [record.get("text") for record in records] == [ANSWER, ANSWER, None]
    assert "messages is empty" in records[2]["error"]


def test_ids_that_no_float_holds(polylm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id":1e400,"text":"c"}\n')
    assert answered(polylm, tmp_path / "in.jsonl")[0]["id"] == "1e400"
    assert "Infinity" not in (tmp_path / "answers.jsonl").read_text()


def test_tables_keep_their_columns(polylm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(f'id;text;lang\n7;"{QUESTION}";en\n8;;de\n')
    out = tmp_path / "out.csv"
    arguments = ("batch", str(tmp_path / "in.csv"), str(out), "--chat", "--device", "cpu")
    assert polylm(*arguments).errors == "1 of 2 lines hold an error.\n"
    with out.open(newline="") as file:
        records = list(csv.reader(file, delimiter=";"))
    assert records[0] == ["id", "text", "lang", "answer", "tokens", "finish_reason", "error"]
    assert records[1][:4] == ["7", QUESTION, "en", ANSWER]
    assert records[2][:4] == ["8", "", "de", ""] and "empty" in records[2][-1]
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    polylm(*arguments)
    assert out.read_bytes() == whole


def test_objects_become_a_table(polylm: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"text": QUESTION}, {"text": QUESTION, "id": 2, "lang": "en"}]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = tmp_path / "out.tsv"
    assert polylm("batch", str(tmp_path / "in.jsonl"), str(out), "--chat", "--device", "cpu").exit_code == 0
    with out.open(newline="") as file:
        records = list(csv.DictReader(file, delimiter="\t"))
    assert [(record["id"], record["lang"], record["answer"]) for record in records] == [
        ("", "", ANSWER),
        ("2", "en", ANSWER),
    ]


def test_a_batch_without_any_answer_fails(polylm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"txt": "a"}\n{"text": "a", "max_new_tokens": 2}\n{"text": "a", "system": "b"}\n'
    )
    for name in ("out.jsonl", "out.csv"):
        for _ in range(2):  # the second time nothing is left to do
            outcome = polylm("batch", str(tmp_path / "in.jsonl"), str(tmp_path / name), *OPTIONS)
            assert (outcome.exit_code, outcome.errors) == (1, "3 of 3 lines hold an error.\n")
    errors = [record["error"] for record in lines(tmp_path / "out.jsonl")]
    for error, part in zip(errors, ("'txt'", "--max-new-tokens", "'system'"), strict=True):
        assert part in error


def test_empty_lines_at_the_end_are_no_rows(polylm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"Beijing\r\n\r\n \r\n")
    outcome = polylm("batch", str(tmp_path / "in.txt"), str(tmp_path / "out"), *OPTIONS)
    assert (outcome.exit_code, outcome.errors) == (0, "")
    assert len(lines(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing.txt", "out"], "cannot be read: No such file"),
        (["in.txt", "."], "is a folder"),
        (["in.txt", "in.txt"], "is the input"),
        (["in.txt", "no/where/out"], "does not exist"),
        (["in.txt", "-", "--json"], "--json prints to stdout"),
        (["in.csv", "out", "--column", "txt"], "did you mean 'text'"),
        (["in.csv", "out", "--template", "x"], "no place for the text"),
        (["in.txt", "out", "--column", "body"], "no column 'body'"),
        (["more.csv", "out"], "'lang', which has no meaning here"),
        (["option.csv", "out.csv"], "the option 'max_new_tokens'"),
        (["twice.csv", "out"], "2 columns with the name 'text'"),
        (["answer.csv", "out.csv"], "a column 'answer', which the output needs"),
        (["in.txt", "out", "--format", "jsonlines"], "did you mean jsonl"),
        (["in.csv", "out", "--delimiter", "::"], "must be one character"),
        (["in.txt", "out", "--encoding", "utf-16"], "encoding='utf-16'"),
        (["in.txt", "out", "--temperature", "0"], "temperature=0"),
        (["in.txt", "out", "--backend", "nativ"], "backend='nativ'"),
    ],
)
def test_bad_calls(
    polylm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a\n")
    Path("in.csv").write_text("text\na\n")
    Path("more.csv").write_text("text,lang\na,en\n")
    Path("option.csv").write_text("text,max_new_tokens\na,2\n")
    Path("twice.csv").write_text("text,text\na,b\n")
    Path("answer.csv").write_text("text,answer\na,b\n")
    outcome = polylm("batch", *arguments, "--device", "cpu")
    assert (outcome.exit_code, outcome.output) == (2, "")
    assert reason in outcome.errors
    assert len(outcome.errors.splitlines()) == 1
    assert Path("in.txt").read_text() == "a\n"
