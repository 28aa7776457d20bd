"""The file of results: it reads back as it was written, and what is none says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import InputError
from modelscope_polylm.evaluation.results import ModelFacts, Results, Sample, TaskResult, read_results, write_results

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
RESULTS = Results(
    ModelFacts("/models/tiny", "tiny", "0" * 64),
    {"modelscope-polylm": "0.1.0", "lm_eval": "0.4.13"},
    {"limit": 2, "backend": "native"},
    1.5,
    [
        TaskResult("xnli_en", "xnli", "en", "acc", 50.0, 0, 2, 1, samples=[Sample(0, 100.0, "Yes"), Sample(1, 0.0)]),
        TaskResult("wmt20_en-de", "wmt20", "en-de", "bleu", 3.5, 1, 1, 0, SIGNATURE, [Sample(0, 3.5, "ä", ["ä", "b"])]),
    ],
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_results(path, RESULTS)
    assert read_results(path) == RESULTS
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["format"] == 1
    assert found["tasks"][0]["samples"] == [{"id": 0, "score": 100.0, "output": "Yes"}, {"id": 1, "score": 0.0}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, and this version reads format 1"),
        ({"format": None}, "has format None"),
        ({"model": {}}, "no complete file"),
        ({"tasks": [{"task": "xnli_en"}]}, "no complete file"),
        ({"tasks": [{**RESULTS.to_dict()["tasks"][0], "metric": "luck"}]}, "the metric 'luck'"),
        ({"tasks": [{**RESULTS.to_dict()["tasks"][0], "value": "high"}]}, "the value 'high'"),
        ({"another": 1}, "no complete file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**RESULTS.to_dict(), **change}), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_results(path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "no 'format'"), (None, "cannot be read")])
def test_what_is_no_results_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_results(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_results(tmp_path / "file" / "results.json", RESULTS)
