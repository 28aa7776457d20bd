"""The output file: complete records only, continued after any cut, never at the cost of somebody else's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelscope_polylm.cli.batch.output import OutputFile, OutputStream, is_stream
from modelscope_polylm.cli.batch.records import RecordFormat, TableRecords, answer_lines
from modelscope_polylm.cli.batch.rows import Row
from modelscope_polylm.errors import InputError, OptionError, PolyLMError

LINES = answer_lines()
TABLE = TableRecords(["id", "text"], ",", several=False)


def records(format: RecordFormat, count: int = 12) -> list[bytes]:
    """Records of rows that cannot be answered, with line ends and quotation marks in them."""
    rows = [Row(number, {"id": number, "text": f'"北京"\n, {number}\r'}) for number in range(1, count + 1)]
    return [format.record(row, InputError("a\nb\r" * (row.number % 3))) for row in rows]


@pytest.mark.parametrize("format", [LINES, TABLE], ids=["lines", "table"])
def test_cut_anywhere_and_continued(tmp_path: Path, format: RecordFormat) -> None:
    all_records = records(format)
    whole = format.header + b"".join(all_records)
    ends = [len(format.header) + len(b"".join(all_records[:count])) for count in range(13)]
    file = tmp_path / "out"
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        output = OutputFile(file, format)
        assert output.written == max(sum(end <= length for end in ends) - 1, 0)
        output.append(all_records[output.written :])
        output.close()
        assert file.read_bytes() == whole


def test_errors_are_counted_also_those_of_an_earlier_run(tmp_path: Path) -> None:
    for format in (LINES, TABLE):
        output = OutputFile(tmp_path / "out", format, overwrite=True)
        # the error of every third record is empty, which a table cannot tell from none
        output.append(records(format, 3))
        output.close()
        again = OutputFile(tmp_path / "out", format)
        assert again.failed == output.failed == (3 if format is LINES else 2)
        again.close()


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    file, lines, rows = tmp_path / "out.jsonl", records(LINES), records(TABLE)
    for format, content in (
        (LINES, b"my notes\n"),
        (LINES, b"".join(lines[1:])),
        (LINES, b"".join([*lines[:2], b"\n"])),
        (LINES, lines[0] * 2),
        (TABLE, b"my notes\n"),
        (TABLE, b"".join(rows)),
        (TABLE, TableRecords(["id"], ",", several=False).header),
    ):
        file.write_bytes(content)
        with pytest.raises(OptionError, match="was changed: its line"):
            OutputFile(file, format)
        assert file.read_bytes() == content
    OutputFile(file, LINES, overwrite=True).close()
    assert file.read_bytes() == b""


def test_two_writers(tmp_path: Path) -> None:
    first = OutputFile(tmp_path / "out.jsonl", LINES)
    with pytest.raises(OptionError, match="Another run"):
        OutputFile(tmp_path / "out.jsonl", LINES, overwrite=True)
    first.append(records(LINES, 1))
    first.close()
    OutputFile(tmp_path / "out.jsonl", LINES).close()
    assert (tmp_path / "out.jsonl").read_bytes() == records(LINES, 1)[0]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    output = OutputFile(tmp_path / "out.jsonl", LINES)
    output.append(records(LINES, 2))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PolyLMError, match=r"No space left on device\. 12 lines are complete"):
        output.append(records(LINES)[2:])
    assert output.written == 12  # they are written, but may not survive a power failure
    output.close()


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file or directory"):
        OutputFile(tmp_path / "nowhere" / "out.jsonl", LINES)
    with pytest.raises(OptionError, match="Is a directory"):
        OutputFile(tmp_path, LINES)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_streams(tmp_path: Path) -> None:
    assert is_stream(Path("-")) and is_stream(Path("/dev/full"))
    assert not is_stream(tmp_path) and not is_stream(tmp_path / "new")
    with pytest.raises(OSError, match="No space left"):
        OutputStream(Path("/dev/full"), LINES).append(records(LINES))
