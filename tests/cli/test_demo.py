"""`polylm demo`: the published call on the bundled model."""

from __future__ import annotations

from modelscope_polylm.text.languages import LANGUAGES, SENTENCE
from tests.processes import ended_seconds, run_polylm


def test_demo_translates_into_18_languages_quickly() -> None:
    before = ended_seconds()
    done = run_polylm("demo", "--device", "cpu")
    seconds = ended_seconds() - before
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < 12
    lines = done.stdout.splitlines()
    assert lines[:2] == ["北京是中国的首都。", ""]
    translations = dict(line.split(maxsplit=1) for line in lines[2:])
    assert list(translations) == list(LANGUAGES.values())
    assert translations["English"] == SENTENCE
    assert translations["French"] == "Pékin est la capitale de la Chine."
    assert len(set(translations.values())) == 18
