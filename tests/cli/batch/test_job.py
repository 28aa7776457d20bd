"""Batches on the bundled model, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.cli.batch.job import BatchJob
from modelscope_polylm.cli.batch.output import settings_file
from modelscope_polylm.cli.batch.requests import PromptTemplate
from modelscope_polylm.cli.batch.rows import BatchInput
from modelscope_polylm.errors import DeviceError, InputError, OptionError
from modelscope_polylm.generation.runner import Runner
from modelscope_polylm.generator import TextGenerator

OPTIONS = {"max_new_tokens": 6, "num_beams": 1}
WORDS = ["Beijing", "is", "the", "capital", "of", "China", "and", "Paris", "that", "of", "France", "they", "say"]


def write_lines(file: Path, count: int) -> Path:
    """Lines of different lengths, every seventh one empty."""
    texts = (" ".join(WORDS[: 1 + index % 11]) + f" {index}" if index % 7 != 3 else "" for index in range(count))
    file.write_text("".join(f"{text}\n" for text in texts))
    return file


def job(source: Path, out: Path, chat: bool = False, **settings: Any) -> BatchJob:
    return BatchJob(BatchInput.find(source), out, PromptTemplate(chat=chat), **settings)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.txt", 80)


def test_answers_in_order_and_as_one_by_one(tiny: TextGenerator, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = job(source, out, batch_size=4).run(tiny, OPTIONS)
    records, texts = lines(out), source.read_text().split("\n")
    assert [record["line"] for record in records] == list(range(1, 81))
    assert [record["line"] for record in records if "error" in record] == [4 + 7 * i for i in range(11)]
    options = tiny.options(OPTIONS)
    for record in records[:20]:
        if "text" in record:
            reply = tiny.reply([tiny.reader.read(texts[record["line"] - 1], options)], options)[0]
            assert record["text"] == reply.texts[0]
            assert record["tokens"] == len(reply.completions[0].ids)
    answered = [record for record in records if "text" in record]
    assert (summary["lines"], summary["answered"], summary["errors"]) == (80, 69, 11)
    assert summary["tokens"] == sum(record["tokens"] for record in answered)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_rows_are_kept_in_flight_and_written_in_order(
    tiny: TextGenerator, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    running: list[int] = []
    step = Runner.step

    def counted(runner: Runner, active: Any) -> Any:
        running.append(len(active))
        return step(runner, active)

    monkeypatch.setattr(Runner, "step", counted)
    job(source, tmp_path / "out.jsonl", batch_size=batch_size).run(tiny, OPTIONS)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["line"] for record in records] == list(range(1, 81))
    assert max(running) <= 3 if batch_size else max(running) > 3


def test_resumed_output_is_that_of_an_undisturbed_run(tiny: TextGenerator, source: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    sampling = {"max_new_tokens": 3, "do_sample": True, "seed": 5}
    for file in (whole, out):
        job(source, file, batch_size=2).run(tiny, sampling)
    content = whole.read_bytes()
    for cut in (0, 1, len(content) // 2, len(content) - 20):
        out.write_bytes(content[:cut])
        summary = job(source, out, batch_size=2).run(tiny, sampling)
        assert out.read_bytes() == content
        assert summary["answered"] + summary["errors"] == 80 - content[:cut].count(b"\n")


def test_complete_output_is_left_alone(tiny: TextGenerator, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    job(source, out).run(tiny, OPTIONS)
    before = out.stat().st_mtime_ns, out.read_bytes()
    assert job(source, out).run(tiny, OPTIONS)["answered"] == 0
    assert (out.stat().st_mtime_ns, out.read_bytes()) == before


@pytest.mark.parametrize(
    ("options", "settings", "what"),
    [
        ({**OPTIONS, "max_new_tokens": 7}, {}, "max_new_tokens was 6, now 7"),
        ({"max_new_tokens": 6}, {}, "num_beams was 1, now 4"),
        (OPTIONS, {"batch_size": 3}, "batch_size was None, now 3"),
        (OPTIONS, {"chat": True}, "chat was False, now True"),
    ],
)
def test_other_options_are_refused(
    tiny: TextGenerator, source: Path, tmp_path: Path, options: Any, settings: Any, what: str
) -> None:
    out = tmp_path / "out.jsonl"
    job(source, out).run(tiny, OPTIONS)
    before = out.read_bytes()
    with pytest.raises(OptionError, match=what):
        job(source, out, **settings).run(tiny, options)
    assert out.read_bytes() == before
    job(source, out, overwrite=True, **settings).run(tiny, options)
    job(source, out, **settings).run(tiny, options)


def test_other_inputs_and_models_are_refused(
    tiny: TextGenerator, source: Path, tmp_path: Path, random_snapshot: Path
) -> None:
    out = tmp_path / "out.jsonl"
    job(source, out).run(tiny, OPTIONS)
    other = TextGenerator.load(random_snapshot, device="cpu", prompt_format="assistant")
    with pytest.raises(OptionError, match="the model is another one"):
        job(source, out).run(other, OPTIONS)
    write_lines(source, 81)
    with pytest.raises(OptionError, match="the input is another one"):
        job(source, out).run(tiny, OPTIONS)


def test_output_without_its_settings_is_refused(tiny: TextGenerator, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    job(source, out).run(tiny, OPTIONS)
    for broken in ("", "[]", "{"):
        settings_file(out).write_text(broken)
        with pytest.raises(OptionError, match="which says how it was made, does not"):
            job(source, out).run(tiny, OPTIONS)


def test_deleted_output_begins_again(tiny: TextGenerator, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    job(source, out).run(tiny, OPTIONS)
    out.unlink()
    job(source, out).run(tiny, {**OPTIONS, "max_new_tokens": 1})
    assert len(lines(out)) == 80


def test_check_before_the_model_is_loaded(source: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("without a line end")
    for out, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "out", "does not exist"),
        (source, "is the input"),
        (notes, "is of no earlier run"),
    ):
        with pytest.raises(OptionError, match=reason):
            job(source, out).check()
    assert notes.read_text() == "without a line end"
    job(source, tmp_path / "new").check()
    job(source, Path("-")).check()


def test_a_row_that_does_not_fit_keeps_no_other_from_its_answer(
    tiny: TextGenerator, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(source, tmp_path / "whole.jsonl").run(tiny, OPTIONS)
    submit = tiny.backend.submit
    large = tiny.snapshot.tokenizer.encode(source.read_text().splitlines()[11])

    def refuse_one(requests: Any, *arguments: Any) -> Any:
        if requests[0].prompt == large:
            raise DeviceError("too much")
        return submit(requests, *arguments)

    monkeypatch.setattr(tiny.backend, "submit", refuse_one)
    job(source, tmp_path / "out.jsonl").run(tiny, OPTIONS)
    expected, found = lines(tmp_path / "whole.jsonl"), lines(tmp_path / "out.jsonl")
    assert found[11] == {"line": 12, "error": "too much"}
    assert [*found[:11], *found[12:]] == [*expected[:11], *expected[12:]]


def test_options_that_cannot_be_stop_at_once(tiny: TextGenerator, source: Path, tmp_path: Path) -> None:
    for options in ({"temperature": -1}, {"max_new_tokens": 600}):
        with pytest.raises(OptionError):
            job(source, tmp_path / "out.jsonl").run(tiny, options)
    assert job(source, tmp_path / "out.jsonl").run(tiny, OPTIONS)["lines"] == 80


def test_rows_of_objects(tiny: TextGenerator, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    rows: list[Any] = [
        {"id": "\ud800", "text": "Beijing"},
        {"id": [1], "messages": [{"role": "user", "content": "Hi"}]},
        {"id": 3, "messages": []},
        {"id": 4, "text": 5},
        {"id": 5, "text": "\ud800"},
        {"id": 6, "text": "word " * 2_000_000},
        7,
    ]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    job(source, tmp_path / "out.jsonl").run(tiny, {**OPTIONS, "num_return_sequences": 2, "num_beams": 2})
    found = lines(tmp_path / "out.jsonl")
    assert [record.get("id") for record in found] == ["\ud800", [1], 3, 4, 5, 6, None]
    assert ["error" in record for record in found] == [False, False, True, True, True, True, True]
    assert len(found[0]["texts"]) == len(found[0]["scores"]) == 2
    assert "context holds 512" in found[5]["error"]


def test_empty_files(tiny: TextGenerator, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"")
    assert job(tmp_path / "in.txt", tmp_path / "out").run(tiny, OPTIONS)["lines"] == 0
    assert (tmp_path / "out").read_bytes() == b""
    (tmp_path / "in.csv").write_bytes(b"")
    with pytest.raises(InputError, match="no header"):
        job(tmp_path / "in.csv", tmp_path / "out").check()
