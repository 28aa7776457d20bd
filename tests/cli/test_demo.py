"""`polylm demo`: the published call on the bundled model."""

from __future__ import annotations

import resource

from modelscope_polylm.text.languages import LANGUAGES, SENTENCE
from tests.processes import run_polylm


def test_demo_translates_into_18_languages_quickly() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_polylm("demo", "--device", "cpu")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    # processor time of one thread, because the wall clock measures what else the machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 12
    lines = done.stdout.splitlines()
    assert lines[:2] == ["北京是中国的首都。", ""]
    translations = dict(line.split(maxsplit=1) for line in lines[2:])
    assert list(translations) == list(LANGUAGES.values())
    assert translations["English"] == SENTENCE
    assert translations["French"] == "Pékin est la capitale de la Chine."
    assert len(set(translations.values())) == 18
