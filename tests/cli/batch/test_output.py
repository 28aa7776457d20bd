"""The output file: complete lines only, continued behind any cut, never at the cost of somebody else's file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from modelscope_polylm.cli.batch.output import OutputFile, OutputStream, encoded, is_stream
from modelscope_polylm.errors import OptionError, PolyLMError

RECORDS = [{"line": number, "text": f"北京 {number}\n"} for number in range(1, 13)]


def test_cut_anywhere_and_continued(tmp_path: Path) -> None:
    whole = encoded(RECORDS)
    file = tmp_path / "out.jsonl"
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        output = OutputFile(file)
        assert output.written == whole[:length].count(b"\n")
        output.append(RECORDS[output.written :])
        output.close()
        assert file.read_bytes() == whole


def test_other_lines_are_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    for content in (b"my notes\n", encoded(RECORDS[1:]), encoded(RECORDS[:2]) + b"\n", encoded(RECORDS[:1] * 2)):
        file.write_bytes(content)
        with pytest.raises(OptionError, match="was changed: its line"):
            OutputFile(file)
        assert file.read_bytes() == content
    OutputFile(file, overwrite=True).close()
    assert file.read_bytes() == b""


def test_two_writers(tmp_path: Path) -> None:
    first = OutputFile(tmp_path / "out.jsonl")
    with pytest.raises(OptionError, match="Another run"):
        OutputFile(tmp_path / "out.jsonl", overwrite=True)
    first.append(RECORDS[:1])
    first.close()
    OutputFile(tmp_path / "out.jsonl").close()
    assert (tmp_path / "out.jsonl").read_bytes() == encoded(RECORDS[:1])


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    output = OutputFile(tmp_path / "out.jsonl")
    output.append(RECORDS[:2])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PolyLMError, match=r"No space left on device\. 2 lines are complete"):
        output.append(RECORDS[2:])
    assert output.written == 2
    output.close()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file or directory"):
        OutputFile(tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(OptionError, match="Is a directory"):
        OutputFile(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_streams(tmp_path: Path) -> None:
    assert is_stream(Path("-")) and is_stream(Path("/dev/full"))
    assert not is_stream(tmp_path) and not is_stream(tmp_path / "new")
    with pytest.raises(OSError, match="No space left"):
        OutputStream(Path("/dev/full")).append(RECORDS)


def test_any_text_becomes_one_line_of_json() -> None:
    texts = ["\n\r\u2028\x85\0", "\ud800 lone", '"\\', "\U0001f600"]
    lines = encoded([{"line": 1, "text": text} for text in texts]).decode().split("\n")
    assert [json.loads(line)["text"] for line in lines[:-1]] == texts


def test_numbers_that_json_cannot_express_become_null() -> None:
    records = [
        {"line": 1, "score": float("nan"), "scores": [float("-inf"), -1.5], "answers": {"logprob": float("inf")}}
    ]
    (line,) = encoded(records).decode().splitlines()
    assert "NaN" not in line and "Infinity" not in line
    assert json.loads(line) == {"line": 1, "score": None, "scores": [None, -1.5], "answers": {"logprob": None}}
