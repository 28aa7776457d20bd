"""`polylm translate` on the bundled model, in this process."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polib
import pytest
import srt

from examples.tiny_corpus import SENTENCES
from modelscope_polylm.cli.translate.job import TranslationJob, segments_file
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS
from modelscope_polylm.translation.documents import read_document
from modelscope_polylm.translation.translator import Translator
from tests.commands import Outcome

ROOT = Path(__file__).parents[3]
ENGLISH = [row["en"] for row in SENTENCES.values()]
VIETNAMESE = [row["vi"] for row in SENTENCES.values()]
Polylm = Callable[..., Outcome]


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in segments_file(out).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A document of as many lines as the bundled model knows."""
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"{text}\n" for text in ENGLISH), encoding="utf-8")
    return file


@pytest.mark.parametrize("to", ["vi", "Vietnamese", "tiếng việt", "越南语"])
def test_a_text(polylm: Polylm, to: str) -> None:
    assert polylm("translate", f"{ENGLISH[0]} {ENGLISH[1]}", "--to", to) == (
        0,
        f"{VIETNAMESE[0]} {VIETNAMESE[1]}\n",
        "",
    )


def test_stdin(polylm: Polylm) -> None:
    given = f"\ufeff{SENTENCE}\r\n\r\n- {SENTENCE}\r\n".encode()
    assert polylm("translate", "-", "--to", "de", "--from", "en", stdin=given).output == (
        f"{TRANSLATIONS['de']}\n\n- {TRANSLATIONS['de']}\n"
    )
    found = polylm("translate", "-", "--to", "de", "--format", "md", stdin=f"# {SENTENCE}\n\n    code\n".encode())
    assert found.output == f"# {TRANSLATIONS['de']}\n\n    code\n"


def test_alternatives_and_json(polylm: Polylm) -> None:
    rows = [
        line.split("\t")
        for line in polylm("translate", SENTENCE, "--to", "de", "--alternatives", "3").output.splitlines()
    ]
    assert rows[0][1] == TRANSLATIONS["de"]
    scores = [float(score) for score, _ in rows]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    record = json.loads(polylm("translate", SENTENCE, "--to", "de", "--alternatives", "2", "--json").output)
    assert (record["translation"], record["source"], record["target"]) == (TRANSLATIONS["de"], "en", "de")
    assert len(record["alternatives"]) == len(record["segments"][0]["alternatives"]) == 2


def test_the_encoding_is_that_of_files(polylm: Polylm, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(f"Köln? {SENTENCE}".encode("latin-1"))
    for given in (str(file), "-"):
        stdin = file.read_bytes()
        assert (
            TRANSLATIONS["de"] in polylm("translate", given, "--to", "de", "--encoding", "latin-1", stdin=stdin).output
        )
        refused = polylm("translate", given, "--to", "de", stdin=stdin)
        assert refused.exit_code == 2
        assert "binary or not utf-8" in refused.errors
    assert polylm("translate", SENTENCE, "--to", "de", "--encoding", "utf-16").output == f"{TRANSLATIONS['de']}\n"


def test_suspicious_sentences_are_listed(polylm: Polylm, tmp_path: Path) -> None:
    found = polylm("translate", f"{SENTENCE} Send {{name}} home.", "--to", "vi")
    assert "{name}" in found.output
    assert "Send {name} home." in found.errors
    file = tmp_path / "mixed.md"
    file.write_text(f"# {SENTENCE}\n\nSend {{name}} home.\n")
    found = polylm("translate", str(file), "--to", "vi", "-o", str(tmp_path / "mixed.vi.md"))
    assert found.exit_code == 0
    assert "1 of 2 segments need a look:" in found.errors
    assert "line 3: " in found.errors
    assert "mixed.vi.md.segments.jsonl" in found.errors


def test_subtitles(polylm: Polylm, tmp_path: Path) -> None:
    film = tmp_path / "film.srt"
    film.write_text(f"1\r\n00:00:01,000 --> 00:00:02,000\r\n{ENGLISH[0]}\r\n\r\n", newline="")
    assert polylm("translate", str(film), "--to", "vi", "-o", str(tmp_path / "film.vi.srt")).exit_code == 0
    written = (tmp_path / "film.vi.srt").read_bytes()
    assert b"\r\n" in written
    assert written.count(b"\n") == written.count(b"\r\n")
    [cue] = srt.parse(written.decode())
    assert (cue.content, cue.start.total_seconds()) == (VIETNAMESE[0], 1.0)


def test_catalog(polylm: Polylm, tmp_path: Path) -> None:
    file, out = tmp_path / "app.po", tmp_path / "vi.po"
    file.write_text(f'msgid ""\nmsgstr ""\n\nmsgid "{SENTENCE}"\nmsgstr ""\n\nmsgid "Done"\nmsgstr "Xong"\n')
    assert polylm("translate", str(file), "--to", "vi", "-o", str(out)).exit_code == 0
    catalog = polib.pofile(str(out))
    assert [entry.msgstr for entry in catalog] == [TRANSLATIONS["vi"], "Xong"]
    assert catalog.metadata["Language"] == "vi"
    found = polylm("translate", str(out), "--to", "vi", "-o", str(tmp_path / "again.po"))
    assert "Nothing was there to translate." in found.errors


def test_tables(polylm: Polylm, tmp_path: Path) -> None:
    table, rows = (
        tmp_path / "in.csv",
        [["id", "note"], ["1", ENGLISH[0]], ["2", ""], ["3", f"{ENGLISH[1]}\n{ENGLISH[2]}"]],
    )
    with table.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    found = polylm("translate", str(table), "--to", "vi", "--column", "note", "--into", "vi")
    shown = list(csv.reader(found.output.splitlines(keepends=True), delimiter=";"))
    added = ["vi", VIETNAMESE[0], "", f"{VIETNAMESE[1]}\n{VIETNAMESE[2]}"]
    assert shown == [[*row, more] for row, more in zip(rows, added, strict=True)]
    objects = tmp_path / "in.jsonl"
    objects.write_text(json.dumps({"id": [1], "text": ENGLISH[0]}) + "\n" + json.dumps(ENGLISH[1]) + "\n")
    found = polylm("translate", str(objects), "--to", "vi")
    assert [json.loads(line) for line in found.output.splitlines()] == [
        {"id": [1], "text": ENGLISH[0], "translation": VIETNAMESE[0]},
        {"text": ENGLISH[1], "translation": VIETNAMESE[1]},
    ]


def test_a_run_goes_on_where_it_was(
    polylm: Polylm, tiny: TextGenerator, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lines.vi.txt"
    original = Translator.each

    def interrupted(self: Translator, *arguments: Any) -> Any:
        for number, found in enumerate(original(self, *arguments)):
            if number == 15:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr("modelscope_polylm.cli.batch.job.WRITE_ROWS", 4)
    monkeypatch.setattr("modelscope_polylm.cli.batch.job.WRITE_SECONDS", 600.0)
    monkeypatch.setattr(Translator, "each", interrupted)
    found = polylm("translate", str(lines), "--to", "vi", "-o", str(out), "--alternatives", "2")
    assert found.exit_code == 130
    assert "Interrupted: 12 of 40 segments are translated" in found.errors
    assert not out.exists()
    segments = segments_file(out)
    segments.write_bytes(segments.read_bytes() + b'{"segment": 13, "pla')  # a kill within a line
    monkeypatch.setattr(Translator, "each", original)
    found = polylm("translate", str(lines), "--to", "vi", "-o", str(out), "--alternatives", "2", "--json")
    assert json.loads(found.output)["answered"] == 28
    assert out.read_text(encoding="utf-8").splitlines() == VIETNAMESE
    assert [record["segment"] for record in records(out)] == list(range(1, 41))
    assert all(len(record["alternatives"]) == 2 for record in records(out))
    for more, said in (
        (["--to", "de"], "target was 'vi', now 'de'"),
        (["--to", "vi", "--num-beams", "2"], "num_beams was 4, now 2"),
    ):
        found = polylm("translate", str(lines), *more, "-o", str(out), "--alternatives", "2")
        assert found.exit_code == 2
        assert said in found.errors
    found = polylm("translate", str(lines), "--to", "de", "-o", str(out), "--overwrite")
    assert found.exit_code == 0
    german = zip(out.read_text(encoding="utf-8").splitlines(), SENTENCES.values(), strict=True)
    assert sum(line == row["de"] for line, row in german) >= 38


@pytest.mark.slow
def test_a_file_of_ten_megabytes(tiny: TextGenerator) -> None:
    text = "".join(f"{line}\n" for line in ENGLISH)
    document = read_document(text * (10_000_000 // len(text)), "txt", "vi")
    start = time.perf_counter()
    job = TranslationJob(document, "vi", "en")
    summary = job.run(Translator(tiny), None)
    assert summary.segments == len(document.texts) > 280_000
    assert summary.text is not None
    assert summary.text.splitlines()[-40:] == VIETNAMESE
    assert time.perf_counter() - start < 120


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Hi you", "--to", "klingon"], "none of PolyLM's 18 languages"),
        (["Hi you", "--to", "Germna"], "did you mean German?"),
        (["Hi you", "--to", "de", "--from", "German"], "both German"),
        ([SENTENCE, "--to", "en"], "seems to be in English already"),
        (["", "--to", "de"], "empty"),
        (["123", "--to", "de"], "tells its language"),
        (["nothing.srt", "--to", "de"], "nothing.srt is no file here"),
        ([".", "--to", "de"], ". is a folder"),
        (["empty.txt", "--to", "de"], "empty.txt: It is empty"),
        (["binary.txt", "--to", "de"], "binary.txt: It is binary"),
        (["binary.srt", "--to", "de"], "binary.srt: It is binary"),
        (["binary.csv", "--to", "de"], "binary"),
        (["broken.srt", "--to", "de"], "broken.srt: These are no SubRip subtitles"),
        (["broken.po", "--to", "de"], "broken.po: This is no gettext catalog"),
        (["broken.jsonl", "--to", "de"], "broken.jsonl: Row 2: The line is not JSON"),
        (["good.csv", "--to", "de"], "no column 'text'"),
        (["good.csv", "--to", "de", "--column", "nite"], "did you mean note?"),
        (["good.csv", "--to", "de", "--column", "note", "--into", "id"], "There is a column 'id' already"),
        (["good.txt", "--to", "de", "--column", "note"], "--column is for csv and jsonl"),
        (["good.txt", "--to", "de", "--format", "doc"], "--format 'doc' is unknown"),
        (["good.txt", "--to", "de", "--alternatives", "2"], "--alternatives of a file needs an output"),
        (["good.txt", "--to", "de", "--json"], "--json of a file needs an output"),
        (["good.txt", "--to", "de", "-o", "good.txt"], "good.txt is the input"),
        (["good.txt", "--to", "de", "-o", "broken.po"], "is of no earlier run"),
        (["good.txt", "--to", "de", "-o", "."], "is a folder"),
        (["good.txt", "--to", "de", "-o", "-"], "leave it out"),
        (["good.txt", "--to", "de", "--encoding", "klingon"], "encoding='klingon' is unknown"),
        (["good.txt", "--to", "de", "--num-return-sequences", "2"], "ask for alternatives"),
    ],
)
def test_bad_input(
    polylm: Polylm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "empty.txt": b"\n",
        "binary.txt": b"\x89PNG\r\n\x1a\n\0\xff",
        "binary.srt": b"\x1f\x8b\x08\0\xff",
        "binary.csv": b"a,b\n\0\xff\n",
        "broken.srt": b"1\n00:01 -> 00:02\nHello\n\n",
        "broken.po": b'msgid "a\nmsgstr "b"\n',
        "broken.jsonl": b'{"text": "a"}\n{"text": \n',
        "good.csv": b"id,note\n1,Hello\n",
        "good.txt": f"{SENTENCE}\n".encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
    found = polylm("translate", *arguments)
    assert found.exit_code == 2
    assert found.output == ""
    assert said in found.errors
    assert found.errors.startswith("Error: ")
    assert found.errors.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.slow
def test_a_real_interruption_loses_nothing(tmp_path: Path) -> None:
    """Ctrl-C in a process of its own, and then the same command again."""
    source, out = tmp_path / "long.txt", tmp_path / "out.txt"
    cities = [text.partition(" is the capital")[0] for text in ENGLISH]
    countries = [text.rpartition(" of ")[2] for text in ENGLISH]
    texts = [f"{city} is the capital of {country}" for city in cities for country in countries[:7]]
    source.write_text("\n".join(texts))
    command = [sys.executable, "-m", "modelscope_polylm", "translate", str(source), "--to", "vi", "-o", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (segments_file(out).exists() and segments_file(out).stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on after them" in errors
    begun = len(records(out))
    assert 0 < begun < len(texts)
    done = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout)["answered"] == len(texts) - begun
    assert len(out.read_text().splitlines()) == len(texts)
