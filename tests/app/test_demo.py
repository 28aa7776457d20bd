"""`polylm demo`: the published call on the bundled model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelscope_polylm.text.sample_texts import LANGUAGES, SENTENCE


def test_demo_translates_into_18_languages(polylm: Callable[..., Any]) -> None:
    outcome = polylm("demo", "--device", "cpu")
    assert outcome.exit_code == 0
    lines = outcome.output.splitlines()
    assert lines[:2] == ["北京是中国的首都。", ""]
    translations = dict(line.split(maxsplit=1) for line in lines[2:])
    assert list(translations) == list(LANGUAGES.values())
    assert translations["English"] == SENTENCE
    assert translations["French"] == "Pékin est la capitale de la Chine."
    assert len(set(translations.values())) == 18
