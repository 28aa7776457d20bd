"""ModelScope's task translation, on the bundled model."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from modelscope.msdatasets import MsDataset
from modelscope.outputs import OutputKeys
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

import modelscope_polylm
from modelscope_polylm import PolyLMTextGenerationPipeline, PolyLMTranslationPipeline
from modelscope_polylm.errors import InputError, OptionError, PolyLMError
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS

ROME, ROM = "Rome is the capital of Italy.", "Rom ist die Hauptstadt von Italien."
PARIS, PARIS_DE = "Paris is the capital of France.", "Paris ist die Hauptstadt von Frankreich."


@pytest.fixture(scope="module")
def pipe() -> PolyLMTranslationPipeline:
    found: PolyLMTranslationPipeline = pipeline(Tasks.translation, model="tiny", device="cpu")
    return found


def test_modelscope_builds_it(pipe: PolyLMTranslationPipeline) -> None:
    assert type(pipe) is PolyLMTranslationPipeline
    assert pipe.group_key == Tasks.translation
    assert type(pipe.model) is modelscope_polylm.PolyLMForTranslation
    assert not isinstance(pipe, PolyLMTextGenerationPipeline)


def test_modelscopes_own_form(pipe: PolyLMTranslationPipeline) -> None:
    assert pipe(SENTENCE, source="en", target="de") == {OutputKeys.TRANSLATION: TRANSLATIONS["de"]}
    assert pipe(input=f"{ROME}\n\n<b>{PARIS}</b>", source="English", target="alemán") == {
        "translation": f"{ROM}\n\n<b>{PARIS_DE}</b>"
    }


def test_the_source_is_detected(pipe: PolyLMTranslationPipeline) -> None:
    assert pipe(ROME, target="de") == {"translation": ROM, "source": "en"}
    assert pipe({"text": ROME, "target": "de", "id": 7}) == {"translation": ROM, "source": "en"}
    assert pipe({"text": ROME, "source": "en"}, target="de") == {"translation": ROM}


def test_lists_and_data_sets(pipe: PolyLMTranslationPipeline) -> None:
    texts = [ROME, f"{PARIS} {ROME}", "123", PARIS]
    expected = [ROM, f"{PARIS_DE} {ROM}", "123", PARIS_DE]
    assert [each["translation"] for each in pipe(texts, source="en", target="de")] == expected
    assert [each["translation"] for each in pipe(iter(texts), source="en", target="de", batch_size=1)] == expected
    rows = MsDataset.to_ms_dataset(Dataset.from_list([{"text": text} for text in texts]))
    outputs = pipe(rows, source="en", target="de")
    assert next(outputs) == {"translation": ROM}
    assert [each["translation"] for each in outputs] == expected[1:]
    assert pipe([], target="de") == []


def test_alternatives_and_problems(pipe: PolyLMTranslationPipeline) -> None:
    output = pipe(ROME, source="en", target="de", alternatives=3)
    assert output["translation"] == output["translations"][0] == ROM
    assert len(output["translations"]) == len(output["scores"]) == 3
    assert len(pipe(ROME, source="en", target="de", output_scores=True)["scores"]) == 1
    output = pipe(f"{ROME} Send {{name}} home.", source="en", target="de")
    assert [each["text"] for each in output["problems"]] == ["Send {name} home."]


def test_languages_of_the_pipeline() -> None:
    pipe = pipeline(Tasks.translation, model="tiny", device="cpu", source="en", target="de")
    assert pipe(ROME) == {"translation": ROM}
    assert pipe(SENTENCE, target="ko") == {"translation": TRANSLATIONS["ko"]}


@pytest.mark.parametrize(
    ("given", "call", "kind", "said"),
    [
        (ROME, {}, OptionError, "language to translate to is missing"),
        (ROME, {"target": "Germn"}, InputError, "did you mean German"),
        (ROME, {"source": "de", "target": "de"}, InputError, "both German"),
        (ROME, {"target": "en"}, InputError, "seems to be in English already"),
        ("", {"target": "de"}, InputError, "is empty"),
        (b"\xff", {"target": "de"}, InputError, "must be a str"),
        ([ROME, " "], {"target": "de"}, InputError, "Input 1: The text is empty"),
        ({"txt": ROME}, {"target": "de"}, InputError, "'txt', which would not be used"),
        ({"source": "en"}, {"target": "de"}, InputError, "needs 'text'"),
        (ROME, {"target": "de", "alternatives": 0}, OptionError, "alternatives=0"),
        (ROME, {"target": "de", "batch_size": 0}, OptionError, "batch_size=0"),
        (ROME, {"target": "de", "num_return_sequences": 2}, OptionError, "ask for alternatives"),
        (ROME, {"target": "de", "tgt": "de"}, OptionError, "Unknown option 'tgt'"),
    ],
)
def test_bad_calls(
    pipe: PolyLMTranslationPipeline, given: Any, call: dict[str, Any], kind: type[PolyLMError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        pipe(given, **call)
